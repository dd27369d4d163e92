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
        Untraceable: if the optimizer, or an option of it, is not known here, has hooks, or gradients are there already.
    """

    def __init__(self, optim: PyroOptim, leaves: list[Tensor]) -> None:
        if not leaves:
            raise Untraceable("no parameter has a gradient")
        if any(p.grad is not None and bool(p.grad.any()) for p in leaves):
            raise Untraceable("gradients lie in grad already, which count in the next step")
        if not all(p.requires_grad for p in leaves):
            raise Untraceable("a parameter that needs no gradient has one of zeros, and moves by its momentum")
        self.leaves, self._ids = leaves, [id(p) for p in leaves]
        self._owners = [_owner(optim, p) for p in leaves]
        self._groups = [owner.param_groups[0] for owner in self._owners]
        self._read = itemgetter(*OPTIONS[type(self._owners[0])])
        options = [self._read(group) for group in self._groups]
        self.adam = _adam(self._owners, options)
        flat = lay_flat(leaves)
        moments = self._lay_moments(flat)
        self._zeros = torch.zeros_like(flat)
        sizes = [p.numel() for p in leaves]
        self._grads = [zero.view(p.shape) for p, zero in zip(leaves, self._zeros.split(sizes), strict=True)]
        self._together = len(set(moments[2].tolist())) == 1
        counts = torch.tensor(sizes, device=flat.device)
        self._owner = torch.arange(len(leaves), device=flat.device).repeat_interleave(counts)
        self.tensors = [flat, *moments, flat.new_zeros(len(leaves))]
        self._lr: list[float] = []
        self._set_gradients()
        self.stepped()
        self._held = [(o.state, o.state[p]) for o, p in zip(self._owners, leaves, strict=True)]  # so that ids stay
        self._seen = self._look(optim)

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

    def fits(self, optim: PyroOptim, leaves: list[Tensor]) -> bool:
        """Whether these are still the leaves, and they, their optimizers and options are as they were left."""
        if [*map(id, leaves)] != self._ids or self._version != self.tensors[3]._version:
            return False
        if [_inner(found) for found in map(optim.optim_objs.get, leaves)] != self._owners:
            return False
        self._set_gradients()
        return self._seen == self._look(optim)

    def _set_gradients(self) -> None:
        """Gradients are zeros between steps, as ``SVI`` leaves them."""
        for leaf, zeros in zip(self.leaves, self._grads, strict=True):
            if leaf.grad is None:
                leaf.grad = zeros

    def _look(self, optim: PyroOptim) -> list:
        """All that a step relies on, but values and rates."""
        found: list = [self._zeros._version]
        for leaf, owner in zip(self.leaves, self._owners, strict=True):
            group, state = owner.param_groups[0], owner.state.get(leaf, {})
            found += map(id, (leaf.grad, owner.state, group, state, *state.values()))
            found += leaf.data_ptr(), self._read(group)[1:], optim.grad_clip.get(leaf), _hooked(owner)
        return found

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
    def kind(self) -> tuple[Adam, bool, int]:
        """What a graph is made for, besides the tensors."""
        return self.adam, self.owner is None, len(self.leaves)


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
    if _hooked(owner):
        raise Untraceable("an optimizer has hooks, which no graph can call")
    owner._opt_called = True  # else a scheduler warns that no step was made
    return owner


def _hooked(owner: Optimizer) -> bool:
    return bool(owner._optimizer_step_pre_hooks or owner._optimizer_step_post_hooks)


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
