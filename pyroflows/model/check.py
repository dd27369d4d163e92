"""Whether a guide over all latents of a model can be right: what a model must be, and what is said where it is not."""

from collections.abc import Callable

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import biject_to

from .given_rows import whole_shape
from .latent_space import LatentSpace, Site
from .sites import Model, innermost, latent_nodes, trace_of


def check_model(model: Model, *args: object, **kwargs: object) -> poutine.Trace:
    """Runs a model and raises a clear error if a guide over all of its latents cannot be right; returns the run.

    Raises:
        RuntimeError: if there is no latent site.
        ValueError: if a latent is discrete or constant, latents are on different devices, a latent stands inside a
            subsampled plate, a support or shape or whether a site is sampled depends on other latents or changes from
            run to run, or the log density is not finite at the start.
    """
    trace = trace_of(model, args, kwargs)
    check_run(trace, model, args, kwargs)
    return trace


def check_run(trace: poutine.Trace, model: Model, args: tuple, kwargs: dict, *, whole: bool = True) -> None:
    """The same for a run that was made; not ``whole`` where a guide can do with some rows of a subsampled plate."""
    if not any(latent_nodes(trace)):
        # The kinds of errors here are those of Pyro's guides.
        raise RuntimeError("expected a model with latent sites, got none: there is nothing to infer")
    for name, node in latent_nodes(trace):
        _check_varies(name, node, trace)
        _check_continuous(node)
        if whole:
            _check_plates(name, node, trace)
    _check_devices(trace)
    if not LatentSpace.of(trace).size:
        raise RuntimeError("expected a model with latent sites, got none but those that obs_mask says are observed")
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
    _check_real(name, [site["value"], *vars(innermost(site["fn"])).values()])


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


def _check_real(name: str, numbers: list) -> None:
    numbers = [v for v in numbers if isinstance(v, Tensor)]
    for wrong in (v.dtype for v in numbers if v.is_complex() or (v.is_floating_point() and v.itemsize < 4)):
        raise ValueError(
            f"expected real latents in single or double precision, got the site {name!r} of {wrong}: call "
            f"torch.set_default_dtype(torch.float32) for 16 bits, and sample complex numbers as two real ones"
        )


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
        u = space.start.new_full(site.unconstrained_shape, 0.3)
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
        if site.shape not in (shape, whole_shape(trace.nodes[site.name])):
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
