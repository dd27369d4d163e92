"""AutoFlow: a normalizing flow as the guide of any Pyro model."""

import copy
from collections.abc import Callable, Iterator
from functools import partial

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution

from ..distributions import FlowDistribution
from ..flows import steady
from ..flows.field import following
from ..flows.linear import FULL_RANK_LIMIT
from ..model import LatentSpace
from ..model.check import check_model, started
from ..model.latent_space import Unscored
from ..transforms import Affine, Compose, FlowTransform, LowerTriangular, NestedGaussian
from ..transforms.compose import as_flow
from .flow_guide import FlowGuide
from .guarded import Guarded
from .init import init_to_prior, prior_spread
from .param_store import check_store

# Where scales of the default guide start, in spreads of the priors.
START = 0.15


class AutoFlow(FlowGuide):
    """A guide that is a normalizing flow over all continuous latents of a model, jointly.

    The latents are put into one unconstrained vector. The guide starts as an affine map at ``init_loc_fn`` with
    scale ``init_scale``; between the base and this map stands a flow that starts at the identity unless its
    networks are the user's own. It works
    wherever Pyro takes a guide: SVI with any ELBO, Predictive, NeuTraReparam, AutoGuideList.

    Args:
        model: a Pyro model whose latents are continuous.
        flow: makes the flow from the number of latents, for example ``functools.partial(flows.nsf, layers=4)``;
            by default :func:`~pyroflows.flows.steady`, whose steps are short, as are those of the affine map then: it
            bears plain loops of SVI, where the safeguards of ``fit`` are missing. Use ``partial`` rather than a lambda
            to pickle a guide that is not yet set up.
        init_loc_fn: where each site starts, see Pyro's autoguide initialization. By default the prior's median,
            and the origin of unconstrained space where the prior cannot be sampled.
        init_scale: the scale of the start in unconstrained space, a number or one for each latent. None is 0.1; for the
            default flow it is 0.15 of the spread of each latent's prior, taken as from 0.1 to 10.
        base: the base distribution, or a function of the number of latents that makes it; by default the
            standard normal.
        path: take the gradient of the ELBO through the draws alone, see :class:`~pyroflows.FlowDistribution`; the
            loss stays what it is. None does so for the default flow and base. A step costs about half as much again,
            and more with a flow that is not fast both ways.

    Raises:
        TypeError: when set up, if ``flow`` does not make a FlowTransform.
        RuntimeError: when set up, if the model has no latents.
        ValueError: when set up, if a latent is discrete, a latent stands in a subsampled plate, a support
            depends on other latents, or the log density is not finite at the start.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        >>> guide = AutoFlow(model).setup()
        >>> guide.latent_dim, list(guide.median())
        (1, ['scale'])
    """

    def __init__(
        self,
        model: Callable,
        flow: Callable[[int], FlowTransform] = steady,
        *,
        init_loc_fn: Callable = init_to_prior,
        init_scale: float | Tensor | None = None,
        base: Distribution | Callable[[int], Distribution] | None = None,
        path: bool | None = None,
    ) -> None:
        if isinstance(flow, FlowTransform) or not callable(flow):
            raise TypeError(
                f"AutoFlow expected flow to be a function of the number of latents, for example "
                f"functools.partial(flows.realnvp, layers=4), got {type(flow).__name__}"
            )
        super().__init__(model, init_loc_fn=partial(started, init_loc_fn))
        self._is_steady = flow is steady
        self.path = (self._is_steady and base is None) if path is None else path
        self._is_within = False
        self._make = (flow, init_scale, base)

    def setup(self, *args: object, **kwargs: object) -> "AutoFlow":
        """Runs the model once, with its arguments, and makes the parameters; returns the guide.

        Afterwards ``parameters()``, ``state_dict()`` and ``load_state_dict()`` work. The first call of the guide
        does this by itself.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        return self

    def _setup_prototype(self, *args: object, **kwargs: object) -> None:
        if self._model is None:
            raise RuntimeError("expected a guide with a model, got an unpickled one: set it up, then pickle it")
        whole = check_model(self.model, *args, **kwargs)
        with torch.no_grad():  # what is kept of the model's run must not hold its graph
            super()._setup_prototype(*args, **kwargs)
        if self.master is None:
            with poutine.block():
                self._create_plates(*args, **kwargs)
        try:
            self._make_parameters(whole)
        except Exception:
            self.prototype_trace = None
            raise

    def _make_parameters(self, whole: poutine.Trace) -> None:
        self.space = LatentSpace.of(self.prototype_trace, whole)
        self.latent_dim = self.space.size
        (make_flow, scale, base), loc = self._make, self.space.start
        spread = prior_spread(self.space, self.prototype_trace) if self._is_steady else None
        if scale is None:
            scale = 0.1 if spread is None else START * spread
        flow = as_flow(make_flow(self.latent_dim), (self.latent_dim,))
        if not isinstance(flow, FlowTransform):
            raise TypeError(f"AutoFlow expected flow(D) to be a FlowTransform, got {type(flow).__name__}")
        full = partial(LowerTriangular, spread=spread)
        affine = full if self.latent_dim <= FULL_RANK_LIMIT else Affine
        transform = Compose([flow, affine(self.latent_dim, loc=loc, scale=scale)])
        self.transform = transform.to(device=loc.device, dtype=loc.dtype)
        self.base = base if base is None or isinstance(base, Distribution) else base(self.latent_dim)
        self._make = None

    def within(self, fixed: FlowTransform) -> "AutoFlow":
        """Puts flow and affine map into other coordinates, from which a fixed map leads on; returns the guide."""
        self._check_ready()
        self.transform, self._is_within = Compose([self.core, fixed]), True
        return self

    def around(self, nested: NestedGaussian) -> "AutoFlow":
        """Puts a flow of hyperparameters, and of a field that follows them, into the coordinates of a Gaussian of both.

        Args:
            nested: the Gaussian, of all latents.

        Returns:
            The guide, which is this Gaussian.
        """
        self._check_ready()
        self.core.transforms[0] = following(self.latent_dim, nested.few.tolist())
        self.core.transforms[-1] = Affine(self.latent_dim)
        self.core.to(nested.loc)
        return self.within(nested)

    def start_at(self, loc: Tensor, scale_tril: Tensor) -> "AutoFlow":
        """Makes the affine map at the end that of a Gaussian; returns the guide.

        Until the guide is converted, as by ``.float()``, a full-rank map is computed in the precision of these.

        Args:
            loc: mean in unconstrained space, or in the coordinates of :meth:`within`, of shape ``(D,)``.
            scale_tril: lower triangular root of the covariance, of shape ``(D, D)``; beyond 1000 latents only its
                diagonal is used.
        """
        self._check_ready()
        affine, first = self.core[-1], next(self.transform.parameters())
        if isinstance(affine, LowerTriangular):
            affine.to(loc).frame_(loc, scale_tril).params.to(first)
        else:
            self.core.transforms[-1] = Affine(self.latent_dim, loc=loc, scale=scale_tril.diagonal()).to(first)
        return self

    def forward(self, *args: object, **kwargs: object) -> dict[str, Tensor]:
        """Samples every site; called with the model's arguments."""
        self.setup(*args, **kwargs)
        check_store(self, "transform")
        with Unscored(self.space.held):
            return super().forward(*args, **kwargs)

    def sample_latent(self, *args: object, **kwargs: object) -> Tensor:
        """Draws the vector; what would make parameters NaN is left out of the step."""
        posterior = FlowDistribution(self.base, Guarded(self.transform), path=self.path)
        return pyro.sample(f"_{self._pyro_name}_latent", posterior, infer={"is_auxiliary": True})

    def __getstate__(self) -> dict:
        # Pyro's version takes model and master from the guide itself, not only from its state.
        model, master = self._model, self.master
        state = dict(super().__getstate__())
        self._model, self.master = model, master
        return state

    def __deepcopy__(self, memo: dict) -> "AutoFlow":
        """A copy for the same model, which is not copied."""
        memo[id(self)] = made = type(self).__new__(type(self))
        made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        made._model = self._model
        return made

    def _unpack_latent(self, latent: Tensor) -> Iterator[tuple[dict, Tensor]]:
        # Pyro reads the batch of a sample as plates of the model unless its dimensions stand left of them.
        nesting = max(len(site.plates) for site in self.space.sites)
        batch = latent.shape[:-1]
        if 0 < len(batch) <= nesting or any(size != 1 for size in batch[max(len(batch) - nesting, 0) :]):
            latent = latent.reshape(batch + (1,) * nesting + latent.shape[-1:])
        return super()._unpack_latent(self.space.spread(latent))
