"""Adam as a function of tensors, to be traced and compiled together with the loss and its gradient."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Adam:
    """One step of Adam for parameters that lie in one vector, as torch, or Pyro's ``ClippedAdam``, makes it.

    The state is ``[m, v, steps, corrections]``: moments of the gradient, steps done by each parameter, and, for the
    step to come, the two factors by which Adam corrects the moments' start from zero. They are kept from the step
    before since a compiler would work them out for every element anew.

    Args:
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: multiple of the parameters that is added to the gradient.
        decoupled: let the parameters decay themselves instead, as in ``AdamW``.
        clip: largest size of each number in the gradient.
        early: add ``eps`` before the correction of the second moment, as ``ClippedAdam`` does.
        centered: take the second moment about the first.

    References:
        Adam: A Method for Stochastic Optimization. Kingma, Ba, 2015. https://arxiv.org/abs/1412.6980
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False
    clip: float | None = None
    early: bool = False
    centered: bool = False

    def start(self, flat: Tensor, parameters: int = 1) -> list[Tensor]:
        """The state before the first step."""
        steps = flat.new_zeros(parameters, dtype=torch.float32)
        return [torch.zeros_like(flat), torch.zeros_like(flat), steps, self.corrections(steps)]

    def corrections(self, steps: Tensor) -> Tensor:
        """The factors of the step after so many, of shape ``(2, parameters)``."""
        count = steps.double() + 1
        first, second = (1 - beta**count for beta in self.betas)
        return torch.stack([first.reciprocal(), second.rsqrt()]).to(steps.dtype)

    def __call__(
        self, flat: Tensor, slope: Tensor, lr: Tensor, state: list[Tensor], owner: Tensor | None = None
    ) -> list[Tensor]:
        """The vector after the step, and the state; nothing is changed in place.

        Args:
            flat: parameters, end to end.
            slope: gradient of the loss.
            lr: learning rate of each parameter.
            state: as above.
            owner: for each element the index of its parameter; None where all have the same rate and steps.
        """
        m, v, steps, corrections = state
        factor, root, lr = (each[0] if owner is None else each[owner] for each in (*corrections.to(flat.dtype), lr))
        if self.clip is not None:
            slope = slope.clamp(-self.clip, self.clip)
        if self.decoupled:
            flat = flat * (1 - lr * self.weight_decay)
        elif self.weight_decay:
            slope = slope + self.weight_decay * flat
        m = m + (slope - m) * (1 - self.betas[0])
        deviation = slope - m if self.centered else slope
        v = self.betas[1] * v + (1 - self.betas[1]) * deviation * deviation
        spread = (v.sqrt() + self.eps) * root if self.early else v.sqrt() * root + self.eps
        return [flat - lr * factor * m / spread, m, v, steps + 1, self.corrections(steps + 1)]
