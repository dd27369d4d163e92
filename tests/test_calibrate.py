"""calibrate: ranks of exact posteriors are uniform, those of wrong ones are not and say how."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from pyro.infer.autoguide import init_to_value
from torch import Tensor

from pyroflows import AutoFlow, Calibration, Posterior, calibrate, flows
from pyroflows.model import LogJoint
from pyroflows.training import History

SD = torch.tensor([0.5, 1.0, 2.0])
SILENT = {"progress": False}


def means(y: Tensor | None = None) -> None:
    """Three normal means, each seen once."""
    with pyro.plate("row", 3):
        mean = pyro.sample("mean", dist.Normal(1.0, 2.0))
        pyro.sample("y", dist.Normal(mean, SD), obs=y)


def exact(model: Callable, *args: object, factor: float = 1.0, shift: float = 0.0, **options: object) -> Posterior:
    """The posterior of ``means``, or one whose sd and mean are off."""
    data = pyro.poutine.trace(model).get_trace(*args).nodes["y"]["value"]
    precision = 0.25 + SD**-2
    loc = (0.25 + data * SD**-2) / precision + shift
    guide = AutoFlow(
        model,
        flows.full_rank,
        init_loc_fn=init_to_value(values={"mean": loc}),
        init_scale=factor * precision**-0.5,
    ).setup(*args)
    return Posterior(guide, LogJoint(model, args, {}, guide.space), History(), num_draws=100)


def test_an_exact_posterior_is_calibrated() -> None:
    found = calibrate(means, torch.zeros(3), fit=exact, num_simulations=200, warm_start=False, **SILENT)
    assert found.ranks["mean"].shape == (200, 3)
    assert (found.num_simulations, found.draws, found.failed, found.untrusted) == (200, 99, (), 0)
    assert found.ranks["mean"].min() >= 0
    assert found.ranks["mean"].max() <= 99
    assert list(found.p_values) == ["mean[0]", "mean[1]", "mean[2]"]
    assert min(found.p_values.values()) > 0.01
    assert "good, the ranks are as uniform as 200 simulations can tell" in found.verdict
    assert "200 simulations, 99 draws each, 0 failed fits" in str(found)


@pytest.mark.parametrize(
    ("wrong", "shape"),
    [
        ({"factor": 0.5}, "too narrow"),
        pytest.param({"factor": 2.0}, "too wide", marks=pytest.mark.slow),
        pytest.param({"shift": 1.0}, "too high", marks=pytest.mark.slow),
        ({"shift": -1.0}, "too low"),
    ],
)
def test_a_wrong_posterior_is_found_out(wrong: dict, shape: str) -> None:
    found = calibrate(means, torch.zeros(3), fit=partial(exact, **wrong), num_simulations=100, **SILENT)
    assert min(found.p_values.values()) < 1e-3
    assert f"do not trust: the posteriors are {shape}" in found.verdict


def test_refined_draws_are_calibrated_where_the_guide_is_not() -> None:
    wide = partial(exact, factor=1.5)
    found = calibrate(means, torch.zeros(3), fit=wide, refine="resample", num_simulations=100, **SILENT)
    assert min(found.p_values.values()) > 0.01
    assert found.untrusted == 0


def test_the_same_data_are_simulated_however_they_are_named() -> None:
    seen: dict[str, list[Tensor]] = {}

    def spy(key: str, model: Callable, *args: object, **options: object) -> Posterior:
        node = pyro.poutine.trace(model).get_trace(*args).nodes["y"]
        assert node["is_observed"]
        seen.setdefault(key, []).append(node["value"])
        return exact(model, *args)

    for key, args, observed in (
        ("by args", (torch.zeros(3),), None),
        ("by site", (), "y"),
        ("by name", (), {"y": "y"}),
    ):
        pyro.set_rng_seed(3)
        calibrate(means, *args, observed=observed, fit=partial(spy, key), num_simulations=20, draws=1, **SILENT)
    assert all(torch.equal(a, b) for a, b in zip(seen["by site"], seen["by name"], strict=True))
    assert len(seen["by args"]) == 20
    spread = torch.stack(seen["by args"]).std(0)
    assert (spread > 0.5 * (4 + SD**2).sqrt()).all()


def test_an_argument_that_the_model_does_not_have() -> None:
    with pytest.raises(ValueError, match=r"expected arguments of the model \['y'\], got \['z'\]"):
        calibrate(means, observed={"y": "z"}, **SILENT)


def test_guides_are_handed_on() -> None:
    guides = []

    def spy(model: Callable, *args: object, guide: AutoFlow | None = None, progress: bool = True) -> Posterior:
        assert not progress
        guides.append(guide)
        return exact(model, *args)

    calibrate(means, torch.zeros(3), fit=spy, num_simulations=20, **SILENT)
    assert guides[0] is None
    assert all(isinstance(guide, AutoFlow) for guide in guides[1:])
    guides.clear()
    calibrate(means, torch.zeros(3), fit=spy, num_simulations=20, warm_start=False, **SILENT)
    assert guides == [None] * 20


def test_failed_fits_are_counted() -> None:
    calls = []

    def fragile(model: Callable, *args: object, **options: object) -> Posterior:
        calls.append("guide" in options)
        if len(calls) % 4 == 0:
            raise FloatingPointError("ran away")
        return exact(model, *args)

    found = calibrate(means, torch.zeros(3), fit=fragile, num_simulations=20, warm_start=False, **SILENT)
    assert found.failed == ("ran away",) * 5
    assert found.num_simulations == 15
    assert "do not trust: 5 of 20 fits failed, the first by: ran away" in found.verdict
    calls.clear()
    found = calibrate(means, torch.zeros(3), fit=fragile, num_simulations=20, **SILENT)
    assert found.failed == ()  # a fit that fails from the last guide is started anew
    assert found.num_simulations == 20


def test_an_error_that_always_comes_is_shown() -> None:
    def broken(model: Callable, *args: object, **options: object) -> Posterior:
        raise ValueError("never works")

    with pytest.raises(ValueError, match="never works"):
        calibrate(means, torch.zeros(3), fit=broken, **SILENT)


def test_it_can_be_stopped_by_hand() -> None:
    calls = []

    def stopped(model: Callable, *args: object, **options: object) -> Posterior:
        calls.append(0)
        posterior = exact(model, *args)
        posterior.history.stopped = "interrupted" if len(calls) == 3 else ""
        return posterior

    with pytest.raises(KeyboardInterrupt):
        calibrate(means, torch.zeros(3), fit=stopped, num_simulations=20, **SILENT)
    assert len(calls) == 3


def test_the_plot_has_a_panel_for_each_scalar() -> None:
    ranks = np.random.default_rng(0).integers(0, 100, size=(200, 5))
    found = Calibration({"x": ranks}, draws=99)
    figure = found.plot(max_scalars=5)
    assert isinstance(figure, Figure)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == [*(f"x[{i}]" for i in range(5)), "", "", ""]
    assert figure.axes[0].patches[-1].get_data().values.sum() == 200


@pytest.mark.parametrize("draws", [1, 7, 99, 100])
def test_p_values_of_uniform_ranks_are_uniform(draws: int) -> None:
    rng = np.random.default_rng(1)
    found = Calibration({"x": rng.integers(0, draws + 1, size=(200, 400))}, draws)
    p = np.array(list(found.p_values.values()))
    assert np.mean(p < 0.1) == pytest.approx(0.1, abs=0.05)
    assert np.mean(p < 0.5) == pytest.approx(0.5, abs=0.12)


def test_the_p_value_is_that_of_a_chi_squared() -> None:
    ranks = np.repeat([0, 1], [115, 85])  # statistic 4.5 on one degree of freedom
    assert Calibration({"x": ranks}, draws=1).p_values["x"] == pytest.approx(0.0338949, abs=1e-6)


def learning(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(pyro.param("prior", torch.tensor(0.0)), 1.0))
    pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def part(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(y), subsample_size=2) as rows:
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y[rows])


def weighed(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mean, 1.0).expand([3]).to_event(1), obs=y)
    pyro.factor("constant", torch.tensor(1.0))
    pyro.factor("tail", -(mean**4))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (weighed, {}, "expected a model whose data can be simulated, got the factor 'tail', of latents: write"),
        (means, {"num_simulations": 10}, "calibrate expected num_simulations to be a whole number from 20 on, got 10"),
        (means, {"draws": 0}, "expected draws to be a whole number from 1 on, got 0"),
        (means, {"observed": "z"}, "expected a model with observed sites, got no site 'z'"),
        (lambda y: means(), {}, "expected a model with observed sites, got none: name them by observed="),
        (learning, {}, "expected a model without parameters of its own, which each fit would move, got 'prior'"),
        (part, {}, "expected a model of all its data, got one of a minibatch"),
    ],
)
def test_bad_input(model: Callable, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrate(model, torch.zeros(3), fit=exact, **SILENT, **options)
