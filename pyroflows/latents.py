"""The latent sites of a Pyro model as one unconstrained vector."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, ExpandedDistribution, Independent, MaskedDistribution
from pyro.infer.autoguide.utils import helpful_support_errors
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution, Transform, biject_to, constraints

Model = Callable[..., object]
# Points at which it is seen whether a site has bounds.
POINTS = 16


@dataclass(frozen=True)
class Site:
    """One latent site: its place in the vector, and how the vector maps to its values.

    Args:
        name: the name given to ``pyro.sample``.
        support: the constraint of its values.
        shape: shape of a value, plates first.
        event_dim: how many of the last dimensions are one event.
        plates: names of the plates, outermost first, one for each batch dimension (None: no plate there).
        start: first place in the vector.
        dtype: what its values were drawn in.
    """

    name: str
    support: constraints.Constraint
    shape: torch.Size
    event_dim: int
    plates: tuple[str | None, ...]
    start: int
    dtype: torch.dtype

    @property
    def transform(self) -> Transform:
        """Maps unconstrained numbers to the support."""
        return biject_to(self.support)

    @property
    def unconstrained_shape(self) -> torch.Size:
        """Shape of a value's unconstrained numbers."""
        return torch.Size(self.transform.inverse_shape(self.shape))

    @property
    def size(self) -> int:
        """How many places it takes in the vector."""
        return math.prod(self.unconstrained_shape)

    @property
    def stop(self) -> int:
        """One past the last place in the vector."""
        return self.start + self.size


class LatentSpace:
    """Names, shapes and supports of a model's continuous latent sites, and the way to and from one vector.

    Made by :meth:`of`; the order of the vector is the order of the sample statements.

    Args:
        sites: the sites.
        values: their values where the model was run; :attr:`start` is this point as a vector.
    """

    def __init__(self, sites: list[Site], values: dict[str, Tensor]) -> None:
        self.sites = sites
        self.start = self.unconstrain(values)[0]

    @classmethod
    def of(cls, trace: poutine.Trace) -> "LatentSpace":
        """Reads the latent sites off a trace of the model."""
        sites, start = [], 0
        for name, node in latent_nodes(trace):
            fn = node["fn"]
            with helpful_support_errors(node):
                biject_to(fn.support)
            value = node["value"]
            sites.append(Site(name, fn.support, value.shape, fn.event_dim, plates_of(node), start, value.dtype))
            start = sites[-1].stop
        return cls(sites, {site.name: trace.nodes[site.name]["value"].detach() for site in sites})

    @property
    def size(self) -> int:
        """Length of the vector."""
        return self.sites[-1].stop if self.sites else 0

    def constrain(self, z: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Maps ``(..., D)`` to values ``(..., *site.shape)`` by name and ``log |d values / d z|`` of ``(...)``."""
        batch, values, total = z.shape[:-1], {}, z.new_zeros(z.shape[:-1])
        for site in self.sites:
            u = z[..., site.start : site.stop].reshape(batch + site.unconstrained_shape)
            values[site.name] = site.transform(u)
            total = total + _sum_to(site.transform.log_abs_det_jacobian(u, values[site.name]), batch)
        return values, total

    def bounded(self) -> dict[str, Tensor]:
        """Which numbers of each site have a range that ends on both sides, as booleans of a value's shape.

        Far out in unconstrained space they go no further: shares, correlations, numbers from an interval.
        """
        found = {}
        for site in self.sites:
            numbers = torch.arange(1, 1 + POINTS * site.size, device=self.start.device, dtype=self.start.dtype).sin()
            away = torch.cat([numbers, -numbers]).reshape((-1, *site.unconstrained_shape))
            near, far = (site.transform(scale * away).abs().amax(0) for scale in (10.0, 1000.0))
            found[site.name] = far.isfinite() & (far <= 2 * near)
        return found

    def unconstrain(self, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The inverse of :meth:`constrain`: the vectors, and ``log |d z / d values|``.

        Raises:
            ValueError: if a site is missing or its shape does not end in the model's.
        """
        parts, total = [], 0.0
        for site in self.sites:
            value = _check_value(site, values)
            batch = value.shape[: value.dim() - len(site.shape)]
            u = site.transform.inv(value)
            total = total - _sum_to(site.transform.log_abs_det_jacobian(u, value), batch)
            parts.append(u.reshape((*batch, site.size)))
        return torch.cat(parts, dim=-1), total


def latent_nodes(trace: poutine.Trace) -> Iterator[tuple[str, dict]]:
    """The sample statements of a trace that are neither observed nor a plate's choice of rows."""
    for name, node in trace.nodes.items():
        if node["type"] == "sample" and not node["is_observed"] and not site_is_subsample(node):
            yield name, node


def trace_of(model: Model, args: tuple, kwargs: dict) -> poutine.Trace:
    """A run of a model, unseen by the handlers around it."""
    return poutine.block(poutine.trace(model).get_trace)(*args, **kwargs)


def is_minibatch(node: dict) -> bool:
    """Whether a site of a trace stands in a plate of which only some rows were chosen."""
    return any(frame.full_size not in (None, frame.size) for frame in node.get("cond_indep_stack") or ())


def check_model(model: Model, *args: object, **kwargs: object) -> None:
    """Runs a model and raises a clear error if a guide over all of its latents cannot be right.

    Raises:
        RuntimeError: if there is no latent site.
        ValueError: if a latent is discrete or constant, latents are on different devices, a latent stands inside a
            subsampled plate, a support or shape or whether a site is sampled depends on other latents or changes from
            run to run, or the log density is not finite at the start.
    """
    trace = trace_of(model, args, kwargs)
    if not any(latent_nodes(trace)):
        # The kinds of errors here are those of Pyro's guides.
        raise RuntimeError("expected a model with latent sites, got none: there is nothing to infer")
    for name, node in latent_nodes(trace):
        _check_varies(name, node, trace)
        _check_continuous(node)
        _check_plates(name, node, trace)
    _check_devices(trace)
    _check_supports(model, trace, args, kwargs)
    _check_density(trace)


def started(init_loc_fn: Callable[[dict], Tensor], site: dict) -> Tensor:
    """Where a function for continuous sites starts a site."""
    _check_continuous(site)
    return init_loc_fn(site)


def _check_continuous(site: dict) -> None:
    name = site["name"]
    if site["fn"].support.is_discrete:
        raise ValueError(
            f"expected continuous latents, got the discrete site {name!r}: sum it out with "
            f"infer={{'enumerate': 'parallel'}}, poutine.block(model, hide=[{name!r}]) and TraceEnum_ELBO"
        )


def _check_varies(name: str, node: dict, trace: poutine.Trace) -> None:
    if not isinstance(innermost(node["fn"]), Delta):
        return
    if vectors := [vector for vector, found in latent_nodes(trace) if found["infer"].get("is_auxiliary")]:
        raise ValueError(
            f"expected a model without a guide in it, got a guide's site {name!r}, a Delta whose density is that of "
            f"{vectors[0]!r}: call posterior.as_prior(), or pyroflows.GuidePrior(guide), in the place of the guide"
        )
    raise ValueError(
        f"expected latents that vary, got the site {name!r} of a Delta, which is a constant: use its value, "
        f"or pyro.deterministic({name!r}, value)"
    )


def innermost(fn: Distribution) -> Distribution:
    """The distribution under masks, expansions and event dimensions."""
    while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    return fn


def _check_plates(name: str, node: dict, trace: poutine.Trace) -> None:
    for frame in node["cond_indep_stack"]:
        rows = trace.nodes[frame.name]["value"] if frame.name in trace.nodes else None
        if rows is not None and list(map(int, rows)) != list(range(int(frame.full_size))):
            raise ValueError(
                f"expected all rows of plate {frame.name!r}, got {len(rows)} of {frame.full_size} chosen rows "
                f"with the latent site {name!r} inside: the guide would give different rows one latent. Drop "
                f"subsample_size and subsample from this plate, or keep only observed sites inside it"
            )


def _check_supports(model: Model, trace: poutine.Trace, args: tuple, kwargs: dict) -> None:
    """Compares the supports with those at another point: a guide reads them once."""
    space = LatentSpace.of(trace)
    values, _ = space.constrain(space.start + 0.1)
    values = {site.name: values[site.name].to(site.dtype) for site in space.sites}
    with pyro.validation_enabled(False):  # the density may well be undefined there
        moved = trace_of(poutine.condition(model, data=values), args, kwargs)
    check_latents(space.sites, moved)
    for site in space.sites:
        u = torch.full_like(space.start[site.start : site.stop], 0.3).reshape(site.unconstrained_shape)
        other = biject_to(moved.nodes[site.name]["fn"].support)
        if not torch.equal(site.transform(u), other(u)):
            raise ValueError(
                f"expected fixed supports, got the site {site.name!r} whose support depends on other latents: "
                f"sample it on a fixed support and transform it, as in x = bound * pyro.sample(..., Uniform(0, 1))"
            )


def check_latents(sites: list[Site], trace: poutine.Trace) -> None:
    """Raises a ValueError if a run of a model, conditioned on its latents, has others than these sites."""
    fickle = [name for name, _ in latent_nodes(trace)] + [site.name for site in sites if site.name not in trace.nodes]
    if fickle:
        raise ValueError(
            f"expected the same latents in every run, got {', '.join(map(repr, fickle))} in some runs only: "
            f"sample every site always, and choose by torch.where"
        )
    for site in sites:
        shape = trace.nodes[site.name]["fn"].shape()
        if shape != site.shape:
            raise ValueError(
                f"expected the same latents in every run, got the site {site.name!r} of shape {tuple(shape)} after "
                f"{tuple(site.shape)}: let the model depend on its arguments alone"
            )


def _check_devices(trace: poutine.Trace) -> None:
    (first, device), *others = [(name, node["value"].device) for name, node in latent_nodes(trace)]
    for name, other in others:
        if other != device:
            raise ValueError(
                f"expected all latents on one device, got {first!r} on {device} and {name!r} on {other}: make the "
                f"numbers in priors from the data, as by y.new_tensor(0.0), or call torch.set_default_device"
            )


def _check_density(trace: poutine.Trace) -> None:
    trace.compute_log_prob()
    bad = [
        name for name, node in trace.nodes.items() if node["type"] == "sample" and not node["log_prob_sum"].isfinite()
    ]
    if bad:
        raise ValueError(
            f"expected a finite log density at the start, got {float(trace.nodes[bad[0]]['log_prob_sum'])} at the "
            f"site{'s' * (len(bad) > 1)} {', '.join(map(repr, bad))}: check the data against the support and scales "
            f"for numbers too small for their dtype, or start elsewhere with init_loc_fn"
        )


def _check_value(site: Site, values: dict[str, Tensor]) -> Tensor:
    if site.name not in values:
        raise ValueError(f"expected a value for the site {site.name!r}, got {sorted(values)}")
    value = values[site.name]
    if value.shape[value.dim() - len(site.shape) :] != site.shape:
        raise ValueError(
            f"expected the site {site.name!r} to have shape (..., {', '.join(map(str, site.shape))}), "
            f"got {tuple(value.shape)}"
        )
    return value


def plates_of(node: dict) -> tuple[str | None, ...]:
    """Names of the plates over each batch dimension of a value, from the left."""
    names = {frame.dim: frame.name for frame in node["cond_indep_stack"] if frame.vectorized}
    batch_dim = node["value"].dim() - node["fn"].event_dim
    return tuple(names.get(dim) for dim in range(-batch_dim, 0))


def _sum_to(ladj: Tensor, batch: torch.Size) -> Tensor:
    """Sums all dimensions after the batch."""
    return ladj.reshape((*batch, -1)).sum(-1)
