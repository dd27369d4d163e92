"""predict: the model on new data at draws of the posterior; what is observed is drawn, what is fixed stays."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from pyro.infer.autoguide import init_to_value
from torch import Tensor
from torch.testing import assert_close

from pyroflows import AutoFlow, Posterior, calibrate, flows
from pyroflows.model import LogJoint
from pyroflows.training import History

X = torch.linspace(0.0, 4.0, 5)
NEW = torch.tensor([100.0, 200.0, 300.0])
SIGMA = torch.tensor(0.1)
Y = torch.tensor([1.0, 0.0, 1.0, 0.0])


def line(X: Tensor, y: Tensor | None = None) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 5.0))
    b = pyro.sample("b", dist.Normal(0.0, 5.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(25.0))
    mu = pyro.deterministic("mu", a + b * X)
    with pyro.plate("n", len(X)):
        pyro.sample("y", dist.Normal(mu, sigma), obs=y)


def about(model: Callable, *args: object, scale: float = 0.01, dtype: torch.dtype | None = None) -> Posterior:
    """A posterior of draws near a = 1, b = 2 and sigma = 0.1."""
    start = {"a": torch.tensor(1.0), "b": torch.tensor(2.0), "sigma": SIGMA}
    guide = AutoFlow(model, flows.full_rank, init_scale=scale, init_loc_fn=init_to_value(values=start)).setup(*args)
    return Posterior(guide, LogJoint(model, args, {}, guide.space, dtype=dtype), History(), num_draws=400)


def test_b1_predictive_recomputes_deterministic_sites() -> None:
    posterior = about(line, X, 2 * X + 1)
    assert list(posterior.sample(3)) == ["a", "b", "sigma"]
    assert list(posterior.sample(3, deterministic=True)) == ["a", "b", "sigma", "mu"]
    new = Predictive(line, posterior_samples=posterior.sample(200))(NEW)
    assert new["y"].mean(0).numpy() == pytest.approx([201.0, 401.0, 601.0], abs=1.0)
    assert new["mu"].mean(0).flatten().numpy() == pytest.approx([201.0, 401.0, 601.0], abs=1.0)


@pytest.mark.parametrize("dtype", [None, torch.float64])
@pytest.mark.parametrize("y", [None, torch.zeros(3), torch.full((3,), torch.nan)])
def test_b1_predict_at_new_data(dtype: torch.dtype | None, y: Tensor | None) -> None:
    posterior = about(line, X, 2 * X + 1, dtype=dtype)
    new = posterior.predict(NEW, y, num_samples=300)
    assert {name: tuple(v.shape) for name, v in new.items()} == {"mu": (300, 3), "y": (300, 3)}
    assert new["y"].mean(0).numpy() == pytest.approx([201.0, 401.0, 601.0], abs=1.0)
    noise = new["y"] - new["mu"]
    assert noise.std().item() == pytest.approx(0.1, rel=0.1)
    assert abs(np.corrcoef(noise[:, 0], noise[:, 1])[0, 1]) < 0.2
    assert new["mu"].dtype == new["y"].dtype == torch.float32
    assert_close(posterior.predict(NEW, num_samples=5, seed=3), posterior.predict(X=NEW, num_samples=5, seed=3))
    old = posterior.predict(num_samples=200)
    assert old["y"].mean(0).numpy() == pytest.approx((2 * X + 1).numpy(), abs=0.1)


@pytest.mark.parametrize("method", ["importance", "resample", "imh"])
def test_b1_refined_draws_predict_by_their_weights(method: str) -> None:
    def prior() -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.deterministic("twice", 2 * mean)
        with pyro.plate("row", 2):
            pyro.sample("y", dist.Normal(mean, 0.01).mask(False), obs=torch.zeros(2))

    start = {"mean": torch.tensor(0.7)}
    guide = AutoFlow(prior, flows.full_rank, init_scale=1.5, init_loc_fn=init_to_value(values=start)).setup()
    posterior = Posterior(guide, LogJoint(prior, (), {}, guide.space), History(), num_draws=500)
    found = posterior.refine(method, num_draws=2000).predict(num_samples=4000, seed=0)
    assert found["y"].shape == (4000, 2)
    assert found["y"].mean().item() == pytest.approx(0.0, abs=0.1)
    assert found["y"][:, 0].std().item() == pytest.approx(1.0, rel=0.1)
    assert found["twice"].std().item() == pytest.approx(2.0, rel=0.1)
    assert posterior.predict(num_samples=4000)["y"].mean().item() == pytest.approx(0.7, abs=0.1)


def within(X: Tensor, y: Tensor | None = None) -> None:
    with poutine.condition(data={"sigma": SIGMA}):
        line(X, y)


def called(X: Tensor, y: Tensor | None = None) -> None:
    pyro.condition(line, data={"sigma": SIGMA})(X, y)


class Method:
    def model(self, X: Tensor, y: Tensor | None = None) -> None:
        line(X, y)


FIXED = {
    "pyro.condition": pyro.condition(line, data={"sigma": SIGMA}),
    "poutine.condition": poutine.condition(line, data={"sigma": SIGMA}),
    "a trace": poutine.condition(line, data=poutine.trace(lambda: pyro.sample("sigma", dist.Delta(SIGMA))).get_trace()),
    "twice": poutine.condition(poutine.condition(line, data={"sigma": SIGMA}), data={"other": SIGMA}),
    "within": within,
    "called": called,
    "scaled": poutine.scale(pyro.condition(line, data={"sigma": SIGMA}), scale=1.0),
    "reparameterised": poutine.reparam(pyro.condition(line, data={"sigma": SIGMA}), config={}),
    "a partial": partial(pyro.condition(line, data={"sigma": SIGMA})),
    "a method": poutine.condition(Method().model, data={"sigma": SIGMA}),
}
DONE = {"pyro.do": pyro.do(line, data={"sigma": SIGMA}), "poutine.do": poutine.do(line, data={"sigma": SIGMA})}


@pytest.mark.parametrize("name", [*FIXED, *DONE])
def test_b2_what_is_fixed_stays_fixed(name: str) -> None:
    posterior = about((FIXED | DONE)[name], X, 2 * X + 1)
    new = posterior.predict(NEW, num_samples=300)
    assert set(new) == {"mu", "y"}
    assert (new["y"] - new["mu"]).std().item() == pytest.approx(0.1, rel=0.1)
    data = posterior.to_arviz(predictive=True, prior=50, log_likelihood=True)
    groups = (data.observed_data, data.posterior_predictive, data.prior_predictive, data.log_likelihood)
    assert all(set(group) == {"y"} for group in groups)
    noise = data.posterior_predictive["y"].values - data.posterior["mu"].values
    assert noise.std() == pytest.approx(0.1, rel=0.1)
    assert data.prior_predictive["y"].values.std() < 100
    if name in FIXED:
        assert data.constant_data["sigma"].values == pytest.approx(0.1)
        assert "sigma" not in data.posterior


def test_b2_data_that_came_by_condition_are_data() -> None:
    fixed = pyro.condition(line, data={"y": 2 * X + 1, "sigma": SIGMA})
    posterior = about(fixed, X)
    assert set(posterior.to_arviz().observed_data) == {"y"}
    new = posterior.predict(NEW, num_samples=300)
    assert (new["y"] - new["mu"]).std().item() == pytest.approx(0.1, rel=0.1)


def test_b2_calibrate_keeps_what_is_fixed() -> None:
    seen = []

    def quick(model: Callable, *args: object, **_: object) -> Posterior:
        nodes = poutine.trace(model).get_trace(*args).nodes
        assert nodes["sigma"]["value"] == SIGMA
        seen.append(nodes["y"]["value"])
        posterior = about(model, *args)
        assert list(posterior.to_arviz().observed_data) == ["y"]
        return posterior

    conditioned = pyro.condition(line, data={"sigma": SIGMA})
    found = calibrate(conditioned, X, 2 * X + 1, fit=quick, num_simulations=20, draws=3, progress=False)
    assert set(found.ranks) == {"a", "b"}
    assert torch.stack(seen).std() < 100


def test_a_parameter_that_is_substituted() -> None:
    def model(n: int) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("row", n):
            pyro.sample("y", dist.Normal(mean, pyro.param("sd", torch.tensor(5.0))), obs=torch.zeros(n))

    substituted = poutine.substitute(model, data={"sd": torch.tensor(0.01)})
    guide = AutoFlow(substituted, flows.full_rank, init_scale=1e-3).setup(3)
    posterior = Posterior(guide, LogJoint(substituted, (3,), {}, guide.space), History())
    assert posterior.predict(7, num_samples=10)["y"].abs().max() < 0.1


def part(X: Tensor, y: Tensor, size: int = 4) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(X), subsample_size=size) as rows, pyro.plate("column", 2, dim=-2):
        mean = pyro.deterministic("mean", slope * X[rows].expand(2, -1))
        pyro.sample("y", dist.Normal(mean, 1e-3), obs=y[:, rows])


@pytest.mark.parametrize("rows", [8, 10, 4, 3, 1])
def test_all_rows_of_a_subsampled_plate(rows: int) -> None:
    guide = AutoFlow(part, flows.full_rank, init_scale=0.1).setup(X, torch.zeros(2, 5))
    posterior = Posterior(guide, LogJoint(part, (X, torch.zeros(2, 5)), {}, guide.space), History())
    x = torch.arange(1.0, rows + 1)
    new = posterior.predict(x, torch.zeros(2, rows), num_samples=6)
    assert new["y"].shape == new["mean"].shape == (6, 2, rows)
    assert_close(new["y"] / x, new["y"][:, :1, :1].expand(6, 2, rows) / x[0], atol=0.02, rtol=0)


def test_more_rows_than_latents_are_refused() -> None:
    def model(x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("row", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(x + z, 1.0), obs=y)

    guide = AutoFlow(model, flows.full_rank).setup(X, X)
    posterior = Posterior(guide, LogJoint(model, (X, X), {}, guide.space), History())
    assert posterior.predict(X + 1, num_samples=2)["y"].shape == (2, 5)
    with pytest.raises(ValueError, match=r"the latent 'z' has the shape \(5,\) of the fit, got ones .* has \(3,\)"):
        posterior.predict(NEW)


def test_latents_of_new_groups_are_drawn_from_their_prior() -> None:
    def model(groups: int, y: Tensor | None = None) -> None:
        tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
        for i in range(groups):
            effect = pyro.sample(f"effect_{i}", dist.Normal(0.0, tau))
            pyro.sample(f"y_{i}", dist.Normal(effect, 0.01), obs=None if y is None else y[i])

    start = init_to_value(values={"tau": torch.tensor(1.0)})
    guide = AutoFlow(model, flows.full_rank, init_scale=0.01, init_loc_fn=start).setup(2, torch.tensor([5.0, -5.0]))
    posterior = Posterior(guide, LogJoint(model, (2, torch.tensor([5.0, -5.0])), {}, guide.space), History())
    new = posterior.predict(3, torch.zeros(3), num_samples=2000)
    assert set(new) == {"effect_2", "y_0", "y_1", "y_2"}
    assert new["effect_2"].std().item() == pytest.approx(1.0, rel=0.1)
    assert_close(new["y_2"], new["effect_2"], atol=0.06, rtol=0)


@pytest.mark.parametrize("rows", [4, 6])
def test_data_that_were_missing_are_drawn_anew(rows: int) -> None:
    def model(x: Tensor, y: Tensor | None = None, seen: Tensor | None = None) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 0.1), obs=y, obs_mask=seen)

    seen = torch.tensor([True, False, True, False])
    start = init_to_value(values={"slope": torch.tensor(1.0), "y_unobserved": torch.zeros(4)})
    guide = AutoFlow(model, flows.full_rank, init_scale=0.01, init_loc_fn=start).setup(torch.ones(4), Y, seen)
    posterior = Posterior(guide, LogJoint(model, (torch.ones(4), Y, seen), {}, guide.space), History(), num_draws=100)
    for data in ((), (torch.zeros(rows), torch.arange(rows) > 1)):
        new = posterior.predict(torch.full((rows,), 100.0), *data, num_samples=50)
        assert new["y"].shape == (50, rows)
        assert new["y"].mean(0).numpy() == pytest.approx(100.0, abs=2.0)


def test_a_datum_without_a_plate_is_drawn_in_its_shape() -> None:
    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    pyro.enable_validation(False)
    guide = AutoFlow(model, flows.full_rank).setup(X)
    posterior = Posterior(guide, LogJoint(model, (X,), {}, guide.space), History(), num_draws=100)
    assert posterior.predict(torch.zeros(9), num_samples=4)["y"].shape == (4, 9)
    assert posterior.to_arviz(predictive=True).posterior_predictive["y"].shape == (1, 100, 5)


LIKELIHOODS = {
    "binomial": lambda m: dist.Binomial(7, logits=m),
    "beta": lambda m: dist.Beta(m.exp(), 1.0),
    "dirichlet": lambda m: dist.Dirichlet(m.exp()[..., None].expand(*m.shape, 3)),
    "student": lambda m: dist.StudentT(5.0, m, 1.0),
    "exponential": lambda m: dist.Exponential(m.exp()),
    "multinomial": lambda m: dist.Multinomial(4, m[..., None].expand(*m.shape, 3).softmax(-1)),
    "gaussian": lambda m: dist.MultivariateNormal(m[..., None].expand(*m.shape, 2), torch.eye(2)),
    "poisson": lambda m: dist.Poisson(m.exp()),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_any_likelihood_is_drawn(name: str) -> None:
    made = LIKELIHOODS[name]

    def model(n: int, y: Tensor | None = None) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 0.5))
        with pyro.plate("row", n):
            pyro.sample("y", made(mean.expand(n)), obs=y)

    data = made(torch.zeros(4)).sample()
    start = init_to_value(values={"mean": torch.tensor(0.0)})
    guide = AutoFlow(model, flows.full_rank, init_scale=1e-3, init_loc_fn=start).setup(4, data)
    posterior = Posterior(guide, LogJoint(model, (4, data), {}, guide.space), History(), num_draws=100)
    found = posterior.predict(200, num_samples=20)["y"]
    exact = made(torch.zeros(4000)).sample()
    assert found.shape == (20, 200, *data.shape[1:])
    assert found.float().mean().item() == pytest.approx(exact.float().mean().item(), abs=0.1)
    assert found.float().std().item() == pytest.approx(exact.float().std().item(), rel=0.1)
    assert not torch.equal(found[0], found[1])


def test_a_required_argument_is_only_a_shape() -> None:
    def model(X: Tensor, y: Tensor) -> None:
        line(X, y)

    fixed = pyro.condition(model, data={"sigma": SIGMA})
    posterior = about(fixed, X, 2 * X + 1)
    new = posterior.predict(NEW, torch.empty(3), num_samples=200)
    assert new["y"].mean(0).numpy() == pytest.approx([201.0, 401.0, 601.0], rel=0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p: p.predict(NEW, num_samples=0),
            "Posterior expected num_samples to be a whole number from 1 on, got 0",
        ),
        (lambda p: p.sample(0), "Posterior expected num_samples to be a whole number from 1 on, got 0"),
        (lambda p: p.refine("resample", num_draws=100).sample(-1), "Refined expected num_samples to be a whole number"),
    ],
)
def test_bad_input(call: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(about(line, X, 2 * X + 1))


def twice(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    for name in ("one", "two"):
        with pyro.plate(name, 5, subsample_size=2) as rows:
            pyro.sample(f"y_{name}", dist.Normal(mean, 1.0), obs=y[rows])


def test_two_subsampled_plates_are_refused() -> None:
    guide = AutoFlow(twice, flows.full_rank).setup(X)
    posterior = Posterior(guide, LogJoint(twice, (X,), {}, guide.space), History())
    with pytest.raises(ValueError, match="expected at most one plate with subsample_size, got one, two"):
        posterior.predict(X)
