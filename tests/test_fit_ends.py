"""How a ``fit`` goes and ends: bad steps, the progress bar, the reasons to stop."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import init_to_value

from pyroflows import AutoFlow, fit, flows
from pyroflows.training import stopping

SMALL = partial(flows.realnvp, layers=2, hidden_dims=(8,))
pytestmark = pytest.mark.usefixtures("no_search")
quick = partial(fit, flow=flows.full_rank, steps=300, progress=False)
Y = torch.tensor([1.0, 2.5, 3.0, 0.2])


def normal(y: torch.Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    pyro.sample("y", dist.Normal(mu, 1.0).expand([4]).to_event(1), obs=y)


def test_bad_steps_are_dropped_and_counted() -> None:
    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.factor("hole", torch.where(mu > 3.2, math.nan, 0.0))

    with pytest.warns(UserWarning, match="do not trust: the guide misses a part"):
        posterior = quick(model, steps=250)
    bad = posterior.history.bad_steps
    assert 0 < bad < 80
    assert 0 < sum(map(math.isnan, posterior.history.elbo)) <= bad  # some in the affine stage
    assert abs(posterior.guide.mean()["mu"].item()) < 0.1
    assert posterior.guide.sd()["mu"].item() == pytest.approx(1.0, abs=0.1)


def test_too_many_bad_steps_are_an_error() -> None:
    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.factor("only here", torch.where(mu == 0.0, 0.0, math.nan))

    guide = AutoFlow(model, SMALL, init_loc_fn=init_to_value(values={"mu": torch.tensor(0.0)}))
    with pytest.raises(FloatingPointError, match=r"got 50 bad steps of 50 .*: try a smaller lr, double precision"):
        fit(model, guide=guide, progress=False)
    assert all(p.isfinite().all() for p in guide.parameters())


def test_the_progress_bar_shows_the_elbo_and_its_trend(capsys: pytest.CaptureFixture) -> None:
    quick(normal, Y, steps=100, progress=True)
    shown = capsys.readouterr().err
    assert "100/100" in shown
    assert "full rank ..." in shown
    assert "ELBO -7." in shown
    assert " over 50)" in shown
    assert "nan" not in shown


def test_without_progress_it_is_silent(capsys: pytest.CaptureFixture) -> None:
    quick(normal, Y, steps=20)
    assert capsys.readouterr() == ("", "")


def funnel() -> None:
    scale = pyro.sample("scale", dist.Normal(0.0, 1.5))
    pyro.sample("x", dist.Normal(0.0, scale.exp()))


untrusted = pytest.mark.filterwarnings("ignore:fit. .*do not trust:UserWarning")  # a Gaussian is no funnel


def test_it_ends_when_the_weights_hardly_spread() -> None:
    history = quick(normal, Y, steps=5000).history
    assert history.stopped == "the log weights hardly spread"
    assert len(history.elbo) == len(history.log_weight_sd) < 1000


@untrusted
def test_it_ends_when_the_elbo_no_longer_rises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "WINDOW", 100)
    history = quick(funnel, steps=5000, tolerance=0.3, noncentered=False).history
    assert history.stopped == "the ELBO no longer rises"
    assert 200 < len(history.elbo) < 2000


@untrusted
def test_a_single_step() -> None:
    assert len(quick(funnel, steps=1).history.elbo) == 1


@untrusted
def test_it_ends_when_all_steps_were_used() -> None:
    history = quick(funnel, steps=50).history
    assert history.stopped == "all steps were used"
    assert len(history.elbo) == 50
