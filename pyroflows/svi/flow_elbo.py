"""The objectives as losses of Pyro's SVI."""

from collections.abc import Callable

import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor

from ..guides import AutoFlow
from ..infer import Goal, Objective, log_weights
from ..model import LogJoint


class FlowELBO(ELBO):
    """A loss for ``SVI`` that trains an ``AutoFlow`` by any objective, and the parameters of the model with it.

    The loss that a step returns is the negative ELBO, whatever the objective. Particles are evaluated together by
    ``torch.func.vmap``, so a model need not be vectorised.

    Args:
        objective: what to train for, see :mod:`pyroflows.infer.objectives`.
        num_particles: draws behind each step.

    Raises:
        TypeError: at a step, if the guide is not an ``AutoFlow``.
        ValueError: if ``num_particles`` is not positive.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyroflows.infer import IWAE
        >>> def model(y):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(loc, 1.0), obs=y)
        >>> svi = SVI(model, AutoFlow(model), pyro.optim.Adam({"lr": 0.01}), FlowELBO(IWAE(4), num_particles=16))
        >>> svi.step(torch.tensor(1.0)) > 0
        True
    """

    def __init__(self, objective: Objective | None = None, num_particles: int = 64) -> None:
        if num_particles < 1:
            raise ValueError(f"expected a positive number of particles, got {num_particles=}")
        super().__init__(num_particles=num_particles)
        self.objective = Goal.of(objective)

    def loss(self, model: Callable, guide: AutoFlow, *args: object, **kwargs: object) -> float:
        """An estimate of the negative ELBO, in nats."""
        density = self._density(model, guide, args, kwargs)
        with torch.no_grad():
            return -log_weights(guide.get_posterior(), density, self.num_particles, path=False).mean().item()

    def differentiable_loss(self, model: Callable, guide: AutoFlow, *args: object, **kwargs: object) -> Tensor:
        """The same as a scalar tensor whose gradient is that of the objective."""
        density = self._density(model, guide, args, kwargs)
        return -self.objective(guide.get_posterior(), density, self.num_particles).mean()

    def loss_and_grads(self, model: Callable, guide: AutoFlow, *args: object, **kwargs: object) -> float:
        """The same as a number; adds the gradients to the parameters' ``grad``."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        self.objective.advance()
        return loss.item()

    def _density(self, model: Callable, guide: AutoFlow, args: tuple, kwargs: dict) -> LogJoint:
        if not isinstance(guide, AutoFlow):
            raise TypeError(f"FlowELBO expected an AutoFlow as guide, got {type(guide).__name__}")
        self._get_trace(model, guide, args, kwargs)
        return LogJoint(model, args, kwargs, guide.space)

    def _get_trace(self, model: Callable, guide: AutoFlow, args: tuple, kwargs: dict) -> tuple:
        """A plain run of both, which shows SVI the parameters that it looks for while a loss is computed."""
        values = poutine.trace(guide).get_trace(*args, **kwargs)
        return poutine.trace(poutine.replay(model, trace=values)).get_trace(*args, **kwargs), values
