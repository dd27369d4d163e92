"""All kernels of a graph launched by one call, as a CUDA graph: a GPU then does not wait for Python."""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from ..seeds import seed_of, seeded
from .compare import changed, copies, is_expanded
from .record import CHECKS
from .simplify import RANDOM

# The modes of torch.compile that ask for it. Inductor itself makes no CUDA graph of what changes its arguments in
# place, as every step of an optimizer does.
CUDA_GRAPHS = "reduce-overhead", "max-autotune"
# And ours: one where it can be made, without a word where it cannot.
AUTOMATIC = "automatic"


# A recording takes tenths of a second: not worth it where they come oftener than this, after the first few.
FEW, OFTEN = 4, 100


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
    here = next((t.device for t in tensors if t.is_cuda), None)
    if mode not in (*CUDA_GRAPHS, AUTOMATIC) or here is None:
        return run
    quiet, written = mode == AUTOMATIC, changed(module)
    strangers = [t for i, t in enumerate(tensors) if t.device != here and (i in written or not _is_number(t))]
    drawn = [n for n in module.graph.nodes if RANDOM in getattr(n.target, "tags", ()) and not _on_gpu(n)]
    if strangers or drawn:
        what = f"a tensor of shape {tuple(strangers[0].shape)}" if strangers else f"what {drawn[0].name} draws"
        _say(quiet, f"{what} is not on the same GPU: move it there")
        return run
    if checked := [n.name for n in module.graph.nodes if n.target in CHECKS]:
        _say(quiet, f"{checked[0]} waits for the GPU, to raise if a factorisation fails")
        return run
    return CudaGraph(run, written, quiet)


def _say(quiet: bool, why: str) -> None:
    if not quiet:
        warnings.warn(f"no CUDA graph is made, since {why}", stacklevel=5)


def _on_gpu(node: fx.Node) -> bool:
    kinds = [n.meta["kind"] for n in (node, *node.users) if "kind" in n.meta]
    return all(device.type == "cuda" for *_, device in kinds)


def _is_number(tensor: Tensor) -> bool:
    """Whether kernels are given the value, which is then part of a recording, and not the place."""
    return tensor.dim() == 0 and not tensor.is_cuda


class CudaGraph:
    """A function of tensors on one GPU, recorded at its first call and replayed where its arguments lie.

    An argument that it only reads and that lies elsewhere at a later call is copied to one place from then on. Numbers
    on the CPU may be among the arguments; where one has changed the function is recorded anew. Where it cannot be
    recorded, or would have to be again and again, it is called as it is, after a warning.

    Args:
        function: a function of tensors that returns a list of tensors, with the same operations at every call.
        changed: which arguments it changes in place.
        quiet: leave out the warning.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], changed: set[int], quiet: bool = False) -> None:
        self._function, self._changed, self._quiet = function, changed, quiet
        self._replay: Callable[[], object] | None = None
        self._own: dict[int, Tensor | None] = {}
        self._failed, self._recordings, self._replays = False, 0, 0

    def __call__(self, *tensors: Tensor) -> Sequence[Tensor]:
        """What the function returns."""
        if self._failed or _get_current_dispatch_mode_stack():  # a tracer would not see what is replayed
            return self._function(*tensors)
        if self._replay is None or self._moved(tensors):
            try:
                self._prepare(tensors)
            except RuntimeError as error:
                self._failed, self._replay = True, None
                _say(self._quiet, f"recording it failed: {error}")
                return self._function(*tensors)
        for index, own in self._own.items():
            own.copy_(tensors[index])
        self._replay()
        self._replays += 1
        return [t.clone() for t in self._outputs]  # the next replay writes to the same memory

    def _moved(self, tensors: Sequence[Tensor]) -> bool:
        """Whether a recording has other places or numbers; what is only read gets a place of its own."""
        seen = _seen(tensors)
        if seen == self._recorded:
            return False
        found = [i for i, (a, b) in enumerate(zip(seen, self._recorded, strict=True)) if a != b and i not in self._own]
        free = [
            i for i in found if i not in self._changed and not _is_number(tensors[i]) and not is_expanded(tensors[i])
        ]
        self._own.update(dict.fromkeys(free))
        return bool(found)

    def _prepare(self, tensors: Sequence[Tensor]) -> None:
        self._replay = None
        self._recordings += 1
        if self._recordings > FEW + self._replays / OFTEN:
            raise RuntimeError("what it reads changes its place, or a number its value, again and again")
        self._own = {index: copies([tensors[index]])[0] for index in self._own}
        # What is read stays alive, and with it its place.
        self._given = [self._own.get(index, t.detach()) for index, t in enumerate(tensors)]
        self._recorded = _seen(tensors)
        self._replay, self._outputs = record(self._function, self._given)


def _seen(tensors: Sequence[Tensor]) -> list[float]:
    """What a recording holds of its arguments: where they lie, or which numbers they are."""
    return [t.item() if _is_number(t) else t.data_ptr() for t in tensors]


def record(
    function: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor]
) -> tuple[Callable[[], object], Sequence[Tensor]]:
    """What launches all kernels of a call of the function, and the tensors that they write to."""
    device = next(t.device for t in tensors if t.is_cuda)
    # Kernels are loaded, and memory is found, by calls that do not count.
    current, aside = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    aside.wait_stream(current)
    with torch.cuda.stream(aside), seeded(seed_of("calls before a recording"), device):
        for _ in range(2):
            function(*copies(tensors))
    current.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph):
        outputs = function(*tensors)
    return graph.replay, outputs
