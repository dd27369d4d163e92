"""Parameters and the state of Pyro's Adam as a few vectors, of which optimizer and parameters have views."""

from operator import itemgetter

import torch
from pyro.optim import PyroOptim
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..compile import Untraceable, lay_flat
from ..compile.adam import Adam

# The options that an optimizer reads at a step, the learning rate first.
TORCH = "lr", "betas", "eps", "weight_decay", "amsgrad", "maximize"
OPTIONS = {
    torch.optim.Adam: TORCH,
    torch.optim.AdamW: TORCH,
    ClippedAdam: ("lr", "betas", "eps", "weight_decay", "clip_norm", "centered_variance", "lrd"),
}


class FlatState:
    """What a step of Adam changes, in flat tensors that a graph can take.

    Args:
        optim: Pyro's optimizer; objects of its own are made for parameters that it has not seen.
        leaves: the parameters, which become views of one vector.

    Raises:
        Untraceable: if the optimizer, or an option of it, is not known here.
    """

    def __init__(self, optim: PyroOptim, leaves: list[Tensor]) -> None:
        if not leaves:
            raise Untraceable("no parameter has a gradient")
        self.leaves, self._optim = leaves, optim
        self._ids = [id(p) for p in leaves]
        self._owners = [_owner(optim, p) for p in leaves]
        self._groups = [owner.param_groups[0] for owner in self._owners]
        self._read = itemgetter(*OPTIONS[type(self._owners[0])])
        self._options: list[tuple] = [self._read(group) for group in self._groups]
        self.adam = _adam(self._owners, self._options)
        flat = lay_flat(leaves)
        moments = self._lay_moments(flat)
        self._pointers = [p.data_ptr() for p in leaves]
        self._states = [owner.state for owner in self._owners]
        self._together = len(set(moments[2].tolist())) == 1
        sizes = torch.tensor([p.numel() for p in leaves], device=flat.device)
        self._owner = torch.arange(len(leaves), device=flat.device).repeat_interleave(sizes)
        self.tensors = [flat, *moments, flat.new_zeros(len(leaves))]
        self._lr: list[float] = []
        self.stepped()

    def _lay_moments(self, flat: Tensor) -> list[Tensor]:
        """Makes the optimizers' moments and counts views of vectors, which are returned."""
        m, v, steps, _ = self.adam.start(flat, len(self.leaves))
        sizes = [p.numel() for p in self.leaves]
        views = zip(self.leaves, self._owners, m.split(sizes), v.split(sizes), steps, strict=True)
        for leaf, owner, first, second, count in views:
            own = {"step": count, "exp_avg": first.view(leaf.shape), "exp_avg_sq": second.view(leaf.shape)}
            for key, value in owner.state[leaf].items():
                own[key].copy_(torch.as_tensor(value))
            owner.state[leaf] = own
        return [m, v, steps, self.adam.corrections(steps)]

    def fits(self, leaves: list[Tensor]) -> bool:
        """Whether these are still the leaves, and they, their optimizers and options are as they were left."""
        options = [self._read(group) for group in self._groups]
        return (
            self._ids == [id(p) for p in leaves]
            and self._pointers == [p.data_ptr() for p in leaves]
            and self._version == self.tensors[3]._version
            and self._owners == [_inner(self._optim.optim_objs.get(p)) for p in leaves]
            and all(owner.state is state for owner, state in zip(self._owners, self._states, strict=True))
            and all(now[1:] == old[1:] for now, old in zip(options, self._options, strict=True))
        )

    def decay(self) -> None:
        """Lets the learning rates of ``ClippedAdam`` decay, which it does before a step."""
        if self._groups[0].get("lrd", 1.0) != 1.0:
            for group in self._groups:
                group["lr"] *= group["lrd"]
            self.set_rates()

    def set_rates(self) -> None:
        """Reads the learning rates."""
        rates = [group["lr"] for group in self._groups]
        if rates != self._lr:
            self._lr = rates
            self.owner = None if self._together and len(set(rates)) == 1 else self._owner
            self.tensors[-1].copy_(torch.tensor(rates))

    def stepped(self) -> None:
        """Notes that a step was made here: others count in the same place."""
        self._version = self.tensors[3]._version

    @property
    def kind(self) -> tuple[Adam, bool]:
        """What a graph is made for, besides the tensors."""
        return self.adam, self.owner is None


def _owner(optim: PyroOptim, leaf: Tensor) -> Optimizer:
    """Pyro's optimizer for one parameter, made as Pyro makes it."""
    if leaf not in optim.optim_objs:
        gradient, leaf.grad = leaf.grad, None
        optim([leaf])  # without a gradient nothing moves
        leaf.grad = gradient
        found = _inner(optim.optim_objs[leaf]).param_groups[0]
        found["lr"] = found["lr"] / found.get("lrd", 1.0)  # but the rate has decayed once
    owner = _inner(optim.optim_objs[leaf])
    if type(owner) not in OPTIONS:
        known = ", ".join(kind.__name__ for kind in OPTIONS)
        raise Untraceable(f"{type(owner).__name__} is not one of the optimizers {known}")
    if optim.grad_clip[leaf] is not None:
        raise Untraceable("clip_args clip each parameter by itself: use ClippedAdam")
    owner._opt_called = True  # else a scheduler warns that no step was made
    return owner


def _inner(found: Optimizer | LRScheduler | None) -> Optimizer | None:
    return found.optimizer if isinstance(found, LRScheduler) else found


def _adam(owners: list[Optimizer], options: list[tuple]) -> Adam:
    """The step that these optimizers make."""
    if len({(type(o), repr(given[1:])) for o, given in zip(owners, options, strict=True)}) != 1:
        raise Untraceable("options of the optimizer other than lr differ between parameters")
    if any(isinstance(given[0], Tensor) for given in options):
        raise Untraceable("the learning rate is a tensor: use a number")
    _, betas, eps, decay, *rest = options[0]
    if isinstance(owners[0], ClippedAdam):
        return Adam(tuple(betas), eps, decay, clip=rest[0], early=True, centered=rest[1])
    if any(rest):
        raise Untraceable("amsgrad and maximize are not known here")
    decoupled = isinstance(owners[0], torch.optim.AdamW) or owners[0].param_groups[0].get("decoupled_weight_decay")
    return Adam(tuple(betas), eps, decay, decoupled=bool(decoupled))
