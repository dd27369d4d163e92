"""Log likelihoods by row: factors that score rows are in them, others are named in a warning."""

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import init_to_value
from torch import Tensor

from pyroflows import AutoFlow, Posterior, flows
from pyroflows.model import LogJoint
from pyroflows.training import History

T = torch.tensor(np.random.default_rng(3).exponential(1.0, 60), dtype=torch.float32)
CENSORED = T > 0.7
SEEN, LATE = T[~CENSORED], torch.full((int(CENSORED.sum()),), 0.7)
ROW = torch.where(CENSORED, torch.tensor(0.7), T)


def rate() -> Tensor:
    return pyro.sample("rate", dist.Gamma(1.0, 1.0))


def one_plate() -> None:
    r = rate()
    with pyro.plate("row", 60):
        pyro.sample("t", dist.Exponential(r).expand([60]).mask(~CENSORED), obs=ROW)
        pyro.factor("late", torch.where(CENSORED, -r * ROW, 0.0))


def masked_by_handler() -> None:
    r = rate()
    with pyro.plate("row", 60):
        with pyro.poutine.mask(mask=~CENSORED):
            pyro.sample("t", dist.Exponential(r), obs=ROW)
        with pyro.poutine.mask(mask=CENSORED):
            pyro.factor("late", -r * ROW)


def two_plates() -> None:
    r = rate()
    with pyro.plate("seen", len(SEEN)):
        pyro.sample("t", dist.Exponential(r), obs=SEEN)
    with pyro.plate("late", len(LATE)):
        pyro.factor("survival", -r * LATE)


def one_by_one() -> None:
    r = rate()
    for i in pyro.plate("seen", len(SEEN)):
        pyro.sample(f"t_{i}", dist.Exponential(r), obs=SEEN[i])
    for i in pyro.plate("late", len(LATE)):
        pyro.factor(f"survival_{i}", -r * LATE[i])


def factors_only() -> None:
    r = rate()
    with pyro.plate("row", 60):
        pyro.factor("term", torch.where(CENSORED, -r * ROW, r.log() - r * ROW))


def with_a_latent_in_each_row() -> None:
    r = rate()
    with pyro.plate("row", 60):
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("t", dist.Exponential(r).expand([60]).mask(~CENSORED), obs=ROW)
        pyro.factor("late", torch.where(CENSORED, -r * ROW, 0.0))


MODELS = {
    one_plate: ("t", ("row",)),
    masked_by_handler: ("t", ("row",)),
    two_plates: ("t + survival", None),
    one_by_one: (" + ".join([*(f"t_{i}" for i in range(4)), "56 more"]), None),
    factors_only: ("term", None),
    with_a_latent_in_each_row: ("t", ("row",)),
}


def of(model: object) -> Posterior:
    start = init_to_value(values={"rate": torch.tensor(1.0), "z": torch.zeros(60)})
    guide = AutoFlow(model, flows.full_rank, init_scale=0.15, init_loc_fn=start).setup()
    return Posterior(guide, LogJoint(model, (), {}, guide.space), History(), num_draws=500)


def exact(posterior: Posterior) -> np.ndarray:
    r = posterior.draws["rate"].numpy()[:, None]
    return np.where(CENSORED, 0.0, np.log(r)) - r * ROW.numpy()


@pytest.mark.parametrize("model", MODELS)
def test_b3_factors_are_in_the_rows(model: object) -> None:
    posterior = of(model)
    data = posterior.to_arviz(log_likelihood=True)
    ((name, found),) = data.log_likelihood.items()
    expected, dims = MODELS[model]
    assert name == expected
    assert dims is None or found.dims[2:] == dims
    terms = exact(posterior)
    assert found.values.shape == (1, 500, 60)
    assert np.sort(found.values[0]) == pytest.approx(np.sort(terms), abs=1e-5)
    assert arviz.loo(data).n_data_points == 60


def several() -> None:
    r = rate()
    with pyro.plate("row", 60):
        pyro.sample("t", dist.Exponential(r), obs=T)
        pyro.sample("u", dist.Exponential(r), obs=T)
    with pyro.plate("other", 3):
        pyro.sample("v", dist.Exponential(r), obs=T[:3])


def several_with_a_factor() -> None:
    several()
    with pyro.plate("row again", 60):
        pyro.factor("f", -T)


def test_b3_sites_stay_apart_where_no_factor_needs_them_together() -> None:
    assert set(of(several).to_arviz(log_likelihood=True).log_likelihood) == {"t", "u", "v"}
    joined = of(several_with_a_factor).to_arviz(log_likelihood=True).log_likelihood
    assert list(joined) == ["t + u + v + f"]
    assert joined["t + u + v + f"].shape == (1, 500, 60 + 3 + 60)


def outside() -> None:
    r = rate()
    with pyro.plate("seen", len(SEEN)):
        pyro.sample("t", dist.Exponential(r), obs=SEEN)
    pyro.factor("survival", -r * LATE.sum())
    pyro.factor("constant", torch.tensor(3.0))


def of_groups() -> None:
    r = rate()
    with pyro.plate("group", 4):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("tail", -(z**4))
    with pyro.plate("seen", len(SEEN)):
        pyro.sample("t", dist.Exponential(r), obs=SEEN)


@pytest.mark.parametrize(("model", "name"), [(outside, "survival"), (of_groups, "tail")])
def test_b3_a_factor_of_no_row_is_named(model: object, name: str) -> None:
    start = init_to_value(values={"rate": torch.tensor(1.0), "z": torch.zeros(4)})
    guide = AutoFlow(model, flows.full_rank, init_loc_fn=start).setup()
    posterior = Posterior(guide, LogJoint(model, (), {}, guide.space), History(), num_draws=100)
    with pytest.warns(
        UserWarning, match=f"expected factors in a plate of the rows that they score, got '{name}' in none"
    ):
        data = posterior.to_arviz(log_likelihood=True)
    assert list(data.log_likelihood) == ["t"]


def test_predictions_of_factors_alone_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a model that observes all its data"):
        of(factors_only).to_arviz(predictive=True, log_likelihood=True)
