"""AutoPlateFlow: a guide with the structure of the model's plates."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.util import sum_rightmost
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Size, Tensor

from ...arguments import check_counts
from ...infer import Gaussian
from ...infer.nested.sites import Expanded, expanded
from ...infer.nested.start import nested_laplace
from ...model.check import started
from ...model.latent_space import Site
from ...model.rows import RowJoint, RowSite
from ...transforms import Compose, FlowTransform, LowerTriangular
from ..init import init_to_prior, prior_spread
from ..param_store import check_store
from .plate_guide import PlateGuide
from .row_distribution import RowDistribution, particles
from .row_form import RowForm


class AutoPlateFlow(PlateGuide):
    """A guide that follows the model's plates: a vector of globals, and the latents of each row given these.

    It is for models in which the rows of a plate have latents of their own and are independent given the latents
    outside: groups with effects, persons with abilities, hierarchies. Its cost is linear in the rows. Which latents
    these are is read off the model, and printed by :attr:`structure`.

    The globals are a Gaussian, or a flow. The latents of a row are its prior at the drawn globals times a Gaussian of
    the row's data, with a bend in each dimension; see :class:`~pyroflows.guides.row_form.RowForm`. Where rows have data
    that are normal given their latents, this is exact. The guide starts at a nested Laplace approximation, found when
    it is set up, few latents of rows that are not Gaussian integrated by quadrature, which is good enough for many
    models without any training. It works wherever Pyro takes a guide: SVI with any ELBO, Predictive, particles in
    parallel, plates with ``subsample_size``.

    Args:
        model: a Pyro model with continuous latents.
        plate: name of the rows' plate, one around latents that is entered by ``with``; None takes a subsampled one, or
            else the plate that leaves the fewest numbers for globals and one row together.
        flow: makes a flow for the globals from their number, before an affine map; None for the affine map alone.
        init_loc_fn: from where the start is searched.
        hidden: width of the network through which the sites of the rows move with the globals.
        path: take the gradient of the ELBO through the draws alone, see :class:`~pyroflows.FlowDistribution`.
        create_plates: as for any of Pyro's guides.

    Raises:
        ValueError: when set up, if there is no such plate, its rows are not independent given the globals, or the
            model is none that a guide can be right for, see :class:`~pyroflows.guides.AutoFlow`.

    References:
        Automatic Structured Variational Inference. Ambrogioni et al., 2021. https://arxiv.org/abs/2002.00643
        Embedded-model Flows. Silvestri et al., 2022. https://arxiv.org/abs/2110.06021

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
        ...     with pyro.plate("group", len(y)):
        ...         effect = pyro.sample("effect", dist.Normal(mean, 1.0))
        ...         pyro.sample("y", dist.Normal(effect, 1.0), obs=y)
        >>> guide = AutoPlateFlow(model).setup(torch.arange(6.0))
        >>> print(guide.structure)
        globals: mean (1); 1 numbers
        rows of plate 'group': 6; in each effect (1); 1 numbers
        >>> {name: tuple(value.shape) for name, value in guide(torch.arange(6.0)).items()}
        {'mean': (), 'effect': (6,)}
    """

    def __init__(
        self,
        model: Callable,
        plate: str | None = None,
        *,
        flow: Callable[[int], FlowTransform] | None = None,
        init_loc_fn: Callable = init_to_prior,
        hidden: int = 16,
        path: bool = True,
        create_plates: Callable | None = None,
    ) -> None:
        if flow is not None and (isinstance(flow, FlowTransform) or not callable(flow)):
            raise TypeError(
                f"AutoPlateFlow expected flow to be a function of the number of globals, for example "
                f"functools.partial(flows.realnvp, layers=4), got {type(flow).__name__}"
            )
        check_counts("AutoPlateFlow", {}, hidden=hidden)
        init = partial(started, init_loc_fn)
        super().__init__(InitMessenger(init)(model), create_plates=create_plates)
        self._init = init
        self._raw = (model,)
        self._make = (plate, flow, hidden)
        self.path = path

    def setup(self, *args: object, **kwargs: object) -> "AutoPlateFlow":
        """Reads the model's structure with its arguments, finds the start, makes the parameters; returns the guide."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        return self

    def setup_on(self, joint: RowJoint) -> "AutoPlateFlow":
        """The same for a model that was read already, as in another precision."""
        with torch.no_grad():
            args, kwargs = joint.runs.given
            super()._setup_prototype(*args, **kwargs)
        try:
            self._make_parameters(joint)
        except BaseException:
            self.prototype_trace = None
            raise
        return self

    def _setup_prototype(self, *args: object, **kwargs: object) -> None:
        if self._model is None:
            raise RuntimeError("expected a guide with a model, got an unpickled one: set it up, then pickle it")
        self.setup_on(self.read(args, kwargs))

    @torch.inference_mode(False)
    def _make_parameters(self, joint: RowJoint) -> None:
        outer = joint.structure.outer
        with poutine.block():
            start = nested_laplace(joint, prior_spread(outer, self.prototype_trace).to(outer.start))
            sites = expanded(joint, start)
        self._assemble(joint, start.outer, sites)

    def _assemble(self, joint: RowJoint, around: Gaussian, sites: Expanded) -> None:
        _, flow, hidden = self._make
        self.joint, size = joint, joint.structure.outer.size
        affine = LowerTriangular(size).to(around.loc).frame_(around.loc, around.scale_tril)
        made = [] if flow is None else [flow(size).to(around.loc)]
        self.transform, self.form = Compose([*made, affine]), RowForm(sites, hidden)
        self.register_buffer("loc", around.loc.clone())
        self.register_buffer("root", around.scale_tril.clone())
        self.relative = joint.structure.outer.relative  # the same one, whose numbers are kept with the guide's

    def read(
        self, args: tuple, kwargs: dict, dtype: torch.dtype | None = None, *, hide: Sequence[str] = ()
    ) -> RowJoint:
        """The model at these arguments, but for sites to hide, as terms of its rows, once set up those of its plate."""
        plate = self._make[0] if self.prototype_trace is None else self.structure.plate
        model = poutine.block(self.bare_model, hide=[*hide]) if hide else self.bare_model
        joint = RowJoint(model, args, kwargs, plate=plate, dtype=dtype, init_loc_fn=self._init)
        if self.prototype_trace is not None and self.relative is not None:
            joint.structure.outer.relative.load_state_dict(self.relative.state_dict())
        return joint

    def setup_from(self, joint: RowJoint, state: dict[str, Tensor]) -> "AutoPlateFlow":
        """The same with the numbers of a guide that was set up before, its ``state_dict()``, and no search for a start.

        Raises:
            ValueError: if they are of another structure.
        """
        with torch.no_grad():
            args, kwargs = joint.runs.given
            super()._setup_prototype(*args, **kwargs)
        names = ("centre", "root", "slopes", "unit")
        try:
            sites = Expanded(*(state[f"form.{name}"] for name in names))
            self._assemble(joint, Gaussian(state["loc"], state["root"]), sites)
            self.load_state_dict(state)
        except (KeyError, RuntimeError) as error:
            self.prototype_trace = None
            raise ValueError(
                f"expected the numbers of a guide of this structure, with {joint.structure.rows} rows and "
                f"{joint.structure.outer.size} globals, got others: {error}"
            ) from error
        return self

    def start_at(self, loc: Tensor, scale_tril: Tensor) -> "AutoPlateFlow":
        """Makes the affine map of the globals that of a Gaussian, as of better moments; returns the guide.

        Args:
            loc: mean in unconstrained space, of shape ``(Dg,)``.
            scale_tril: lower triangular root of the covariance, of shape ``(Dg, Dg)``.
        """
        self._check_ready()
        self.transform[-1].frame_(loc, scale_tril)
        return self

    def bend(self, flow: Callable[[int], FlowTransform]) -> "AutoPlateFlow":
        """Puts a flow for the globals before the affine map, unless there is one; at the identity nothing changes."""
        self._check_ready()
        if len(self.transform) == 1:
            self.transform = Compose([flow(self.structure.outer.size).to(self.loc), self.transform[0]])
        return self

    def forward(self, *args: object, **kwargs: object) -> dict[str, Tensor]:
        """Samples every site; called with the model's arguments."""
        self.setup(*args, **kwargs)
        check_store(self, "form")
        joint, structure = self.joint.at(args, kwargs), self.structure
        plates, index = self._plates(joint)
        nesting = max(-frame.dim for frame in self._prototype_frames.values())
        g = pyro.sample(f"_{self._pyro_name}_globals", self.outer_posterior(), infer={"is_auxiliary": True})
        outer = particles(g.shape[:-1], nesting)
        flat = g.reshape(-1, g.shape[-1])
        found, (settled, log_scale) = {}, structure.outer.settled(flat)
        for site in structure.outer.sites:
            u, ladj = (site.spread(part[:, site.start : site.stop]) for part in (settled, log_scale))
            found[site.name] = self._site(site, u, outer, nesting, plates, ladj)
        posterior = RowDistribution(
            self.form,
            self.given(joint, flat, index),
            outer,
            nesting if outer else -structure.dim,
            structure.dim,
            path=self.path,
        )
        with plates[structure.plate]:
            z = pyro.sample(f"_{self._pyro_name}_rows", posterior, infer={"is_auxiliary": True})
        rows = z.reshape(len(flat), -1, structure.width)
        for site in structure.inner:
            found[site.name] = self._site(site, site.spread(rows), outer, nesting, plates)
        return found

    def _site(
        self,
        site: Site | RowSite,
        u: Tensor,
        outer: Size,
        nesting: int,
        plates: dict[str, pyro.plate],
        more: Tensor | None = None,
    ) -> Tensor:
        """Samples a site of the model as a Delta at the values of unconstrained numbers ``(S, ...)``.

        These may be a map of others, with log-dets ``more`` of the shape of ``u``.
        """
        value = site.transform(u)
        ladj = site.transform.inv.log_abs_det_jacobian(value, u)
        ladj = sum_rightmost(ladj, ladj.dim() - value.dim() + site.event_dim)
        ladj = ladj if more is None else ladj - sum_rightmost(more, more.dim() - ladj.dim())
        lead = (*outer, *[1] * (nesting - len(site.plates))) if outer else ()
        density = ladj.reshape((*lead, *ladj.shape[1:]))
        like = self.prototype_trace.nodes[site.name]["value"]  # which the guide may be more precise than
        value = value.reshape((*lead, *value.shape[1:])).to(like.dtype)
        delta = Delta(value, log_density=density, event_dim=site.event_dim)
        with ExitStack() as stack:
            for name in site.plates:
                if name is not None:
                    stack.enter_context(plates[name])
            return pyro.sample(site.name, delta)
