"""Simulation-based calibration: whether posteriors hold the truth as often as they say, over data a model makes up."""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor
from tqdm.auto import tqdm

from ..arguments import check_counts
from ..model import Model
from ..model.replay import unobserved
from ..model.sites import data_sites, is_factor, is_minibatch, latent_nodes, trace_of
from ..posterior import Draws, Posterior
from .calibration import HOPELESS, LEAST, Calibration
from .fit import fit as default_fit
from .interruptions import INTERRUPTED
from .options import check_arguments

Call = tuple[Model, tuple, dict]


def calibrate(
    model: Model,
    *args: object,
    observed: str | Sequence[str] | Mapping[str, str] | None = None,
    fit: Callable[..., Posterior] = default_fit,
    refine: str | None = None,
    num_simulations: int = 200,
    draws: int = 99,
    warm_start: bool = True,
    progress: bool = True,
    **kwargs: object,
) -> Calibration:
    """Checks fits by data of known origin: the truth's rank among draws of the posterior must be uniform.

    Each simulation draws latents from the prior and data from the model, and fits their posterior. The call is that
    of ``fit``: the data in it only say which sites are observed.

    Args:
        model: a Pyro model.
        args: its arguments.
        observed: the sites to simulate, by default those observed, and not what ``condition`` fixed. A mapping
            ``{site: argument}`` passes simulated values as arguments, and None while simulating, for models that also
            compute with their data.
        fit: called as :func:`pyroflows.fit` is; for one ``functools.partial(fit, steps=500)``.
        refine: refines each posterior so, see :meth:`pyroflows.Posterior.refine`.
        num_simulations: how many data sets, 20 or more.
        draws: draws of each posterior.
        warm_start: start each fit at the guide of the one before.
        progress: show a progress bar.
        kwargs: the model's keyword arguments.

    Raises:
        TypeError: for an argument that neither ``calibrate`` nor the model takes.
        ValueError: for too few simulations or draws, or a model without data, of a minibatch, with parameters, or with
            factors.

    References:
        Validating Bayesian Inference Algorithms with Simulation-Based Calibration.
        Talts, Betancourt, Simpson, Vehtari, Gelman, 2018. https://arxiv.org/abs/1804.06788
        Yes, but Did It Work?: Evaluating Variational Inference. Yao, Vehtari, Simpson, Gelman, 2018.
        https://arxiv.org/abs/1802.02538
    """
    check_counts("calibrate", {"num_simulations": LEAST}, num_simulations=num_simulations, draws=draws)
    check_arguments(model, kwargs, inspect.signature(calibrate).parameters, "calibrate")
    simulate, fitted = _simulator(model, args, kwargs, observed), _Fits(fit, refine, warm_start)
    ranks = []
    for _ in tqdm(range(num_simulations), disable=not progress, unit="fit"):
        truth, call = simulate()
        found = fitted(*call)
        if found is not None:
            sample = found.sample(draws)
            ranks.append({name: (sample[name] < value).sum(0).cpu().numpy() for name, value in truth.items()})
    by_site = {name: np.stack([rank[name] for rank in ranks]) for name in ranks[0]}
    return Calibration(by_site, draws, tuple(fitted.failed), fitted.untrusted)


class _Fits:
    """Fits one data set after another, from the last guide where wanted, and counts what goes wrong."""

    def __init__(self, fit: Callable[..., Posterior], refine: str | None, warm_start: bool) -> None:
        self.fit, self.refine, self.warm_start = fit, refine, warm_start
        self.failed: list[str] = []
        self.untrusted, self.done, self._guide = 0, 0, None

    def __call__(self, model: Model, args: tuple, kwargs: dict) -> Draws | None:
        """Draws of the posterior, or None where the fit fails.

        Raises:
            ValueError, FloatingPointError: if the first fits fail one and all.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # posteriors not to be trusted are counted
                posterior = self._fit(model, args, kwargs)
        except (ValueError, FloatingPointError) as error:
            self.failed.append(str(error))
            if len(self.failed) == HOPELESS and not self.done:
                raise
            return None
        if posterior.history.stopped == INTERRUPTED:
            raise KeyboardInterrupt
        self.done += 1
        # The rows of a guide by plate are those of its data, and a start of its own takes a moment.
        self._guide = posterior.guide if self.warm_start and isinstance(posterior, Posterior) else None
        found = posterior if self.refine is None else posterior.refine(self.refine)
        self.untrusted += found.diagnostics.grade == "do not trust"
        return found

    def _fit(self, model: Model, args: tuple, kwargs: dict) -> Posterior:
        if self._guide is not None:
            try:
                return self.fit(model, *args, guide=self._guide, progress=False, **kwargs)
            except (ValueError, FloatingPointError):
                self._guide = None  # may lie too far from these data
        return self.fit(model, *args, progress=False, **kwargs)


def _simulator(model: Model, args: tuple, kwargs: dict, observed: Any) -> Callable[[], tuple[dict[str, Tensor], Call]]:
    """A function that draws latents from the prior, and returns them and the call that observes data made by them."""
    arguments = dict(observed) if isinstance(observed, Mapping) else {}
    without = _with_arguments(model, args, kwargs, dict.fromkeys(arguments.values())) if arguments else (args, kwargs)
    trace = trace_of(model, *without)
    given = data_sites(model, *without) if observed is None else observed
    sites = [given] if isinstance(given, str) else list(given)
    _check(trace, sites)
    _check_factors(trace, trace_of(model, *without))

    @torch.no_grad()
    def simulate() -> tuple[dict[str, Tensor], Call]:
        made = trace_of(unobserved(model, sites), *without)
        data = {name: made.nodes[name]["value"] for name in sites}
        truth = {name: node["value"] for name, node in latent_nodes(made) if name not in data}
        if arguments:
            given = {argument: data[site] for site, argument in arguments.items()}
            return truth, (model, *_with_arguments(model, args, kwargs, given))
        return truth, (poutine.condition(model, data=data), args, kwargs)

    return simulate


def _with_arguments(model: Model, args: tuple, kwargs: dict, values: Mapping[str, Any]) -> tuple[tuple, dict]:
    """The arguments of a call with some replaced by name."""
    signature = inspect.signature(model)
    unknown = sorted(set(values) - set(signature.parameters))
    if unknown:
        raise ValueError(f"calibrate expected arguments of the model {list(signature.parameters)}, got {unknown}")
    bound = signature.bind_partial(*args, **kwargs)
    bound.arguments.update(values)
    return bound.args, bound.kwargs


def _check(trace: poutine.Trace, sites: list[str]) -> None:
    missing = [name for name in sites if name not in trace.nodes]
    if missing or not sites:
        got = f"no site {missing[0]!r}" if missing else "none"
        raise ValueError(f"calibrate expected a model with observed sites, got {got}: name them by observed=")
    if any(map(is_minibatch, trace.nodes.values())):
        raise ValueError("calibrate expected a model of all its data, got one of a minibatch: drop subsample_size")
    learnt = [name for name, node in trace.nodes.items() if node["type"] == "param"]
    if learnt:
        raise ValueError(
            f"calibrate expected a model without parameters of its own, which each fit would move, got {learnt[0]!r}"
        )


def _check_factors(first: poutine.Trace, second: poutine.Trace) -> None:
    """Looks at two draws of the prior: what a factor says is in no simulated data, unless it always says the same."""
    factors = [name for name, node in first.nodes.items() if is_factor(node) and name in second.nodes]
    for trace in (first, second):
        trace.compute_log_prob(lambda name, _: name in factors)
    for name in factors:
        if first.nodes[name]["log_prob_sum"] != second.nodes[name]["log_prob_sum"]:
            raise ValueError(
                f"calibrate expected a model whose data can be simulated, got the factor {name!r}, of latents: "
                f"write it as a prior, or as a distribution with obs="
            )
