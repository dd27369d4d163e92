"""All kernels of a graph launched by one call, as a CUDA graph: a GPU then does not wait for Python."""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from ..numeric import seeded
from .tidy import RANDOM, changed, copies, is_expanded

# The modes of torch.compile that ask for it. Inductor itself makes no CUDA graph of what changes its arguments in
# place, as every step of an optimizer does.
CUDA_GRAPHS = "reduce-overhead", "max-autotune"
# And ours: one where it can be made, without a word where it cannot.
AUTOMATIC = "automatic"


def launched(run: Callable, module: fx.GraphModule, tensors: Sequence[Tensor], mode: str | None) -> Callable:
    """The same function as a CUDA graph where the mode asks for one and a GPU holds all that it reads.

    Args:
        run: a function of tensors that returns a list of tensors, made of the graph.
        module: the graph.
        tensors: its arguments, as examples.
        mode: as in ``torch.compile``, or ``AUTOMATIC``.

    Returns:
        A function of the same arguments.
    """
    if mode not in (*CUDA_GRAPHS, AUTOMATIC) or not any(t.is_cuda for t in tensors):
        return run
    quiet = mode == AUTOMATIC
    strangers = [t for t in tensors if t.device != tensors[0].device]
    drawn = [n for n in module.graph.nodes if RANDOM in getattr(n.target, "tags", ()) and not _on_gpu(n)]
    if strangers or drawn:
        what = f"a tensor of shape {tuple(strangers[0].shape)}" if strangers else f"what {drawn[0].name} draws"
        _say(quiet, f"{what} is not on the same GPU: move it there")
        return run
    return CudaGraph(run, changed(module), quiet)


def _say(quiet: bool, why: str) -> None:
    if not quiet:
        warnings.warn(f"no CUDA graph is made, since {why}", stacklevel=5)


def _on_gpu(node: fx.Node) -> bool:
    kinds = [n.meta["kind"] for n in (node, *node.users) if "kind" in n.meta]
    return all(device.type == "cuda" for *_, device in kinds)


class CudaGraph:
    """A function of tensors on one GPU, recorded at its first call and replayed where its arguments lie.

    An argument that it only reads and that lies elsewhere at a later call is copied to one place from then on. Where
    the function cannot be recorded it is called as it is, after a warning.

    Args:
        function: a function of tensors that returns a list of tensors, with the same operations at every call.
        changed: which arguments it changes in place.
        quiet: leave out the warning.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], changed: set[int], quiet: bool = False) -> None:
        self._function, self._changed, self._quiet = function, changed, quiet
        self._graph: torch.cuda.CUDAGraph | None = None
        self._own: dict[int, Tensor | None] = {}
        self._failed = False

    def __call__(self, *tensors: Tensor) -> Sequence[Tensor]:
        """What the function returns."""
        if self._failed or _get_current_dispatch_mode_stack():  # a tracer would not see what is replayed
            return self._function(*tensors)
        if self._graph is None or self._moved(tensors):
            try:
                self._record(tensors)
            except RuntimeError as error:
                self._failed = True
                _say(self._quiet, f"recording it failed: {error}")
                return self._function(*tensors)
        for index, own in self._own.items():
            own.copy_(tensors[index])
        self._graph.replay()
        return [t.clone() for t in self._outputs]  # the next replay writes to the same memory

    def _moved(self, tensors: Sequence[Tensor]) -> bool:
        """Whether an argument lies elsewhere; one that is only read gets a place of its own."""
        places = [t.data_ptr() for t in tensors]
        if places == self._places:
            return False
        found = [i for i, (a, b) in enumerate(zip(places, self._places, strict=True)) if a != b and i not in self._own]
        free = [index for index in found if index not in self._changed and not is_expanded(tensors[index])]
        self._own.update(dict.fromkeys(free))
        return bool(found)

    def _record(self, tensors: Sequence[Tensor]) -> None:
        self._graph = None
        self._own = {index: copies([tensors[index]])[0] for index in self._own}
        given = [self._own.get(index, t.detach()) for index, t in enumerate(tensors)]
        # Kernels are loaded, and memory is found, by calls that do not count.
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside), seeded(1, given[0].device):
            for _ in range(2):
                self._function(*copies(given))
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self._function(*given)
        # What is read stays alive, and with it its place.
        self._graph, self._outputs, self._given = graph, outputs, given
        self._places = [t.data_ptr() for t in tensors]
