"""Several modes: the mixture base, the search, the masses, and what ``fit`` does and says."""

import copy
import math
import pickle
import warnings
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyroflows import AutoFlow, FlowDistribution, Posterior, fit, flows
from pyroflows.distributions import MixtureBase
from pyroflows.infer import Annealed, Gaussian, balance, find_modes, missed_modes, mixture_at, shares

MASS = 0.7
AT, WIDE = torch.tensor([[-4.0, 1.0], [4.0, -1.0]]), torch.tensor([[0.5, 1.0], [1.0, 0.3]])
quick = partial(fit, flow=partial(flows.realnvp, layers=2, hidden_dims=(8,)), steps=150, progress=False, compile=False)


def bumps(z: Tensor) -> Tensor:
    """Two Gaussians, of which the right one has ``MASS``; normalised."""
    parts = dist.Normal(AT.to(z), WIDE.to(z)).log_prob(z.unsqueeze(-2)).sum(-1)
    return (parts + torch.tensor([1 - MASS, MASS]).to(z).log()).logsumexp(-1)


def two() -> None:
    x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (2,)))
    pyro.factor("bumps", bumps(x))


def one() -> None:
    scale = pyro.sample("scale", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(torch.zeros(3), scale.exp()).to_event(1))


def base(dtype: torch.dtype = torch.float64) -> MixtureBase:
    logits, locs = torch.tensor([0.0, 1.0, -1.0]), torch.tensor([[0.0, 1.0], [3.0, 3.0], [-2.0, 0.0]])
    roots = torch.tensor([[1.0, 0.0], [0.5, 2.0]]) * torch.tensor([1.0, 0.5, 2.0])[:, None, None]
    return MixtureBase(logits, locs, roots).to(torch.zeros((), dtype=dtype))


def right(posterior: Posterior) -> float:
    return (posterior.draws["x"][:, 0] > 0).double().mean().item()


def start(scale: float = 1.0) -> Gaussian:
    return Gaussian(torch.zeros(2).double(), scale * torch.eye(2).double())


def test_density_of_the_base_is_that_of_torch() -> None:
    own, z = base(), 3 * torch.randn(7, 5, 2, dtype=torch.float64)
    parts = dist.MultivariateNormal(own.loc, scale_tril=own.scale_tril)
    expected = dist.MixtureSameFamily(dist.Categorical(logits=own.logits), parts)
    torch.testing.assert_close(own.log_prob(z), expected.log_prob(z))
    torch.testing.assert_close(own.shares(z).sum(-1), torch.ones(7, 5, dtype=torch.float64))


def test_draws_of_the_base_have_its_moments() -> None:
    own = base()
    expected = dist.MixtureSameFamily(
        dist.Categorical(logits=own.logits), dist.MultivariateNormal(own.loc, scale_tril=own.scale_tril)
    )
    draws = own.rsample((50, 2000))
    assert draws.shape == (50, 2000, 2)
    error = expected.stddev / 100_000**0.5
    assert ((draws.mean((0, 1)) - expected.mean).abs() < 4.5 * error).all()
    assert ((draws.flatten(0, 1).std(0) / expected.stddev - 1).abs() < 0.02).all()
    assert own.rsample().shape == (2,)


def test_a_guide_with_this_base_works_with_svi_copies_and_pickles() -> None:
    own = base(torch.float32)
    guide = AutoFlow(
        one, flows.full_rank, base=MixtureBase(torch.zeros(2), torch.randn(2, 4), torch.eye(4).repeat(2, 1, 1))
    )
    svi = SVI(one, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(num_particles=4))
    assert all(map(math.isfinite, [svi.step() for _ in range(3)]))
    z = torch.randn(5, 2)
    for twin in (copy.deepcopy(own), pickle.loads(pickle.dumps(own))):
        torch.testing.assert_close(twin.log_prob(z), own.log_prob(z))


def test_shapes_of_the_base_are_checked() -> None:
    with pytest.raises(ValueError, match=r"MixtureBase expected shapes \(K,\), \(K, D\) and \(K, D, D\), got \[\(3,\)"):
        MixtureBase(torch.zeros(3), torch.zeros(2, 4), torch.ones(2, 4, 4))


def test_modes_are_found_best_first() -> None:
    found = find_modes(bumps, start())
    assert len(found) == 2
    for (level, gaussian), at, wide, mass in zip(found, AT.flip(0), WIDE.flip(0), (MASS, 1 - MASS), strict=True):
        assert level == pytest.approx(math.log(mass), abs=1e-3)
        torch.testing.assert_close(gaussian.loc, at.double(), atol=1e-2, rtol=0.0)
        torch.testing.assert_close(gaussian.scale_tril, wide.double().diag(), atol=1e-2, rtol=0.0)


def test_no_modes_where_nothing_is_finite() -> None:
    assert find_modes(lambda z: math.nan * z.sum(-1), start()) == []


def test_one_mode_is_one() -> None:
    assert len(find_modes(lambda z: -z.square().sum(-1), start())) == 1


def test_a_mixture_in_whitened_coordinates() -> None:
    modes = find_modes(bumps, start())
    overall, mixture = mixture_at(modes)
    x = mixture.rsample((100_000,))
    assert x.mean(0).abs().max() < 0.02
    assert (x.T.cov() - torch.eye(2)).abs().max() < 0.03
    z = overall.loc + x @ overall.scale_tril.mT
    ladj = overall.scale_tril.diagonal().log().sum()
    torch.testing.assert_close(mixture.log_prob(x) - ladj, bumps(z), atol=0.1, rtol=0.0)


def test_masses_are_balanced() -> None:
    overall, mixture = mixture_at(find_modes(bumps, start()))
    mixture.logits.copy_(torch.tensor([0.05, 0.95]).log())
    flow = flows.full_rank(2).double()
    flow[0].frame_(overall.loc, overall.scale_tril)
    posterior = FlowDistribution(mixture, flow)
    for _ in range(12):
        balance(posterior, bumps, 4096)
    assert mixture.logits.softmax(0)[0].item() == pytest.approx(MASS, abs=0.005)


def on_the_right() -> FlowDistribution:
    flow = flows.full_rank(2)
    flow[0].frame_(AT[1], WIDE[1].diag())
    return FlowDistribution(transform=flow)


def test_a_missed_mode_is_seen() -> None:
    ((level, missed),) = missed_modes(on_the_right(), bumps, start(), math.log(MASS))
    assert level == pytest.approx(math.log(1 - MASS), abs=1e-3)
    torch.testing.assert_close(missed.loc, AT[0].double(), atol=1e-2, rtol=0.0)
    assert missed_modes(on_the_right(), bumps, start(), math.log(MASS) + 6) == []
    found = shares(on_the_right(), [(level, missed)], math.log(MASS))
    assert found == {"[-4.0, 1.0]": pytest.approx(1 - MASS, abs=1e-3)}


def test_a_mode_that_paths_hardly_reach_is_seen_in_a_mirror() -> None:
    def far(z: Tensor) -> Tensor:  # two modes that differ in which number is large
        at = torch.tensor([[300.0, -200.0, 0.0], [-200.0, 300.0, 0.0]]).to(z)
        return dist.Normal(at, 1.0).log_prob(z.unsqueeze(-2)).sum(-1).logsumexp(-1)

    flow = flows.full_rank(3)
    flow[0].frame_(torch.tensor([300.0, -200.0, 0.0]), torch.eye(3))
    around = Gaussian(torch.tensor([200.0, -200.0, 0.0]).double(), torch.eye(3).double())
    ((_, missed),) = missed_modes(FlowDistribution(transform=flow), far, around, 0.0)
    torch.testing.assert_close(missed.loc, torch.tensor([-200.0, 300.0, 0.0]).double(), atol=1e-2, rtol=0.0)


def test_where_there_is_one_mode_none_is_missed() -> None:
    assert missed_modes(FlowDistribution(transform=flows.full_rank(2)), gauss, start(), 0.0) == []


def gauss(z: Tensor) -> Tensor:
    return dist.Normal(0.0, 1.0).log_prob(z).sum(-1)


def test_a_search_that_fails_is_silent() -> None:
    def fails(z: Tensor) -> Tensor:
        raise torch.linalg.LinAlgError("no factor")

    for density in (fails, lambda z: math.nan * z.sum(-1)):
        assert missed_modes(FlowDistribution(transform=flows.full_rank(2)), density, start(), 0.0) == []


def test_a15_fit_covers_a_mode_that_it_missed() -> None:
    posterior = quick(two)
    assert right(posterior) == pytest.approx(MASS, abs=0.03)
    assert posterior.diagnostics.missed == {}
    assert posterior.history.stopped.endswith(", in a second fit, as the first missed modes: 1")


def test_a15_a_missed_mode_is_in_the_verdict_and_in_files(tmp_path: Path) -> None:
    own = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    message = r"fit: do not trust: there is mass around 1 where .* \[-4.0, 1.0\], about 30% of all\): .*modes=16"
    with pytest.warns(UserWarning, match=message):
        posterior = quick(two, base=own)
    assert right(posterior) == 1.0
    posterior.save(tmp_path / "posterior.pt")
    loaded = Posterior.load(tmp_path / "posterior.pt", two, guide=AutoFlow(two, quick.keywords["flow"], base=own))
    for found in (posterior, loaded, posterior.refine("resample"), posterior.refine("imh", num_draws=100)):
        assert found.diagnostics.grade == "do not trust"
        assert "there is mass around 1 where" in found.diagnostics.verdict


@pytest.mark.parametrize("precision", ["mixed", "double"])
def test_fit_with_modes(precision: str) -> None:
    posterior = quick(two, modes=4, precision=precision)
    assert right(posterior) == pytest.approx(MASS, abs=0.03)
    assert posterior.diagnostics.log_evidence == pytest.approx(0.0, abs=0.01)
    assert posterior.diagnostics.elbo == pytest.approx(0.0, abs=0.02)
    assert posterior.draws["x"].dtype == torch.float32


@pytest.mark.filterwarnings("ignore:fit. .*do not trust:UserWarning")  # 300 steps are few
@pytest.mark.slow
def test_fit_with_modes_where_there_is_one() -> None:
    posterior = quick(one, modes=4, steps=300)
    assert posterior.guide.base is None


def test_masses_move_in_a_traced_fit() -> None:
    def wells() -> None:
        d = pyro.sample("d", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.factor("energy", d / 2 + 6 * d**2 - d**4)

    posterior = quick(wells, modes=2)
    assert (posterior.draws["d"] > 0).double().mean().item() == pytest.approx(0.844, abs=0.02)
    assert posterior.diagnostics.log_evidence == pytest.approx(10.293480 - math.log(2 * math.pi) / 2, abs=0.01)


@pytest.mark.slow
def test_annealing_covers_two_modes() -> None:
    def near() -> None:
        x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.factor("f", torch.logaddexp(-2 * (x - 2) ** 2 + math.log(0.6), -2 * (x + 2) ** 2 + math.log(0.4)))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        posterior = fit(near, objective=Annealed(steps=500), steps=1000, lr=1e-2, progress=False, compile=False)
    right = (posterior.draws["x"] > 0).numpy()
    assert 0.4 < right.mean() < 0.8
    assert posterior.weights @ right == pytest.approx(0.6, abs=0.03)


def learns() -> None:
    pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))


def test_modes_are_refused_where_they_cannot_be() -> None:
    message = "fit expected modes=1 with a guide or base of your own, a model with parameters, .* got modes=3"
    for model, options in (
        (learns, {}),
        (one, {"guide": AutoFlow(one)}),
        (one, {"base": dist.Normal(torch.zeros(4), 1.0).to_event(1)}),
    ):
        with pytest.raises(ValueError, match=message):
            fit(model, modes=3, progress=False, **options)
    with pytest.raises(ValueError, match="fit expected modes to be a whole number from 1 on, got 0"):
        fit(one, modes=0)
