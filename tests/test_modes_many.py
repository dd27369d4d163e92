"""Modes that multiply: crossings, the product base, and what ``fit`` does and says where latents have modes each."""

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
from torch import Tensor

from pyroflows import AutoFlow, FlowDistribution, Posterior, fit, flows
from pyroflows.distributions import MixtureBase, ProductBase
from pyroflows.infer import Gaussian, balance, base_at, find_modes, product_at
from pyroflows.model import LogJoint
from pyroflows.training import History

# Of one double well: the log of its integral, and the mass on the right.
LEVEL, RIGHT = 10.293480 - math.log(2 * math.pi) / 2, 0.8441
COUNT = 12
FLOW = partial(flows.realnvp, layers=2, hidden_dims=(8,))
quick = partial(fit, flow=FLOW, progress=False, compile=False)


def wells(d: Tensor) -> Tensor:
    """``2 ** D`` modes, of which that with all latents to the right has most mass."""
    return (d / 2 + 6 * d**2 - d**4).sum(-1)


def model() -> None:
    d = pyro.sample("d", dist.ImproperUniform(dist.constraints.real_vector, (), (COUNT,)))
    pyro.factor("wells", wells(d))


def sheared(z: Tensor) -> Tensor:
    """Two double wells, not along the coordinates, and a third coordinate that follows both."""
    a, b = z[..., 0], z[..., 1] - 0.5 * z[..., 0]
    third = -2 * (z[..., 2] - a - b) ** 2
    return wells(torch.stack([a, b], -1)) + third


def triangle(z: Tensor) -> Tensor:
    at = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]]).to(z)
    return dist.Normal(at, 0.5).log_prob(z.unsqueeze(-2)).sum(-1).logsumexp(-1)


def start(size: int) -> Gaussian:
    return Gaussian(torch.zeros(size).double(), torch.eye(size).double())


def base() -> ProductBase:
    logits = torch.tensor([[0.0, 1.0], [0.5, 0.0], [0.0, 0.0]]).double()
    loc = torch.tensor([[-2.0, 2.0], [0.0, 3.0], [0.0, 0.0]]).double()
    scale = torch.tensor([[0.5, 1.0], [1.0, 0.3], [1.0, 1.0]]).double()
    axes = torch.linalg.qr(torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0], [1.0, 1.0, 1.0]]).double()).Q
    return ProductBase(logits, loc, scale, axes)


def spelled_out(own: ProductBase) -> MixtureBase:
    """The same as a mixture of all combinations."""
    chosen = torch.cartesian_prod(*[torch.arange(2)] * 3)
    logits, loc, scale = (t.expand(8, 3, 2).gather(-1, chosen[..., None])[..., 0] for t in own.tensors[:3])
    roots = [Gaussian.from_root(m, own.axes * s) for m, s in zip(loc @ own.axes.mT, scale, strict=True)]
    norm = own.logits.logsumexp(-1).sum()
    return MixtureBase(logits.sum(-1) - norm, loc @ own.axes.mT, torch.stack([root.scale_tril for root in roots]))


def test_density_of_a_product_is_that_of_all_combinations() -> None:
    own, z = base(), 3 * torch.randn(7, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(own.log_prob(z), spelled_out(own).log_prob(z))
    assert own.shares(z).shape == (7, 5, 3, 2)
    for twin in (copy.deepcopy(own), pickle.loads(pickle.dumps(own))):
        torch.testing.assert_close(twin.log_prob(z), own.log_prob(z))
        assert twin.logits is twin.tensors[0]


@pytest.mark.parametrize("planned", [False, True])
def test_draws_of_a_product_have_its_moments(planned: bool) -> None:
    own, num = base(), 100_000
    x = own.draw(own.strata(num)[0]) if planned else own.rsample((50, num // 50)).flatten(0, 1)
    w = x @ own.axes
    masses = own.logits.softmax(-1)
    mean = (masses * own.loc).sum(-1)
    sd = (masses * (own.scale**2 + (own.loc - mean[:, None]) ** 2)).sum(-1).sqrt()
    assert ((w.mean(0) - mean).abs() < 4.5 * sd / num**0.5).all()
    assert (w.T.cov() - sd.square().diag()).abs().max() < 0.05
    assert own.rsample().shape == (3,)


def test_planned_draws_have_exactly_the_masses() -> None:
    own = base()
    chosen, log_weights = own.strata(1000)
    assert ((chosen == 1).double().mean(0) - own.logits.softmax(-1)[:, 1]).abs().max() < 0.0011
    assert log_weights.tolist() == 1000 * [0.0]


def test_shapes_of_a_product_are_checked() -> None:
    message = r"ProductBase expected shapes \(D, K\), \(D, K\), \(D, K\) and \(D, D\), got \[\(3, 2\), .* \(2, 2\)"
    with pytest.raises(ValueError, match=message):
        ProductBase(torch.zeros(3, 2), torch.zeros(3, 2), torch.ones(3, 2), torch.eye(2))


def test_crossings_find_the_best_of_many_modes_and_its_neighbours() -> None:
    found = find_modes(wells, start(6), paths=8, work=1.5)
    signs = torch.stack([gaussian.loc > 0 for _, gaussian in found])
    assert signs[0].all()
    assert (signs.sum(-1) == 5).sum() == 6


def test_a_correlated_posterior_with_one_mode_has_one() -> None:
    root = torch.linalg.cholesky(torch.full((6, 6), 0.95).double() + 0.05 * torch.eye(6))
    assert len(find_modes(Gaussian(torch.ones(6).double(), root).log_prob, start(6))) == 1


def test_a_product_along_directions_that_are_not_the_coordinates() -> None:
    found = find_modes(sheared, start(3))
    overall, own = product_at(sheared, found)
    x = own.rsample((20_000,))
    assert x.mean(0).abs().max() < 0.05
    assert (x.T.cov() - torch.eye(3)).abs().max() < 0.05
    ladj = overall.scale_tril.diagonal().log().sum()
    log_weights = sheared(overall.loc + x @ overall.scale_tril.mT) - own.log_prob(x) + ladj
    assert log_weights.std() < 0.3
    assert log_weights.mean() == pytest.approx(2 * LEVEL + math.log(math.pi / 2) / 2, abs=0.05)


def test_modes_that_are_no_product_get_a_mixture() -> None:
    found = find_modes(triangle, start(2), paths=32)
    assert len(found) == 3
    assert isinstance(base_at(triangle, found, 8)[1], MixtureBase)
    assert isinstance(base_at(wells, find_modes(wells, start(2), paths=32), 8)[1], ProductBase)


def test_masses_of_a_product_are_balanced() -> None:
    overall, own = product_at(wells, find_modes(wells, start(4), paths=32))
    own.logits.add_(own.loc.sign() * torch.tensor([[0.5], [-0.5], [1.0], [-1.0]]))
    flow = flows.full_rank(4).double()
    flow[0].frame_(overall.loc, overall.scale_tril)
    posterior = FlowDistribution(own, flow)

    def right() -> Tensor:
        return (posterior.sample((50_000,)) > 0).double().mean(0)

    assert (right() - RIGHT).abs().max() > 0.05
    for _ in range(12):
        balance(posterior, wells, 4096)
    assert (right() - RIGHT).abs().max() < 0.01


def test_fit_is_told_of_modes_that_multiply() -> None:
    message = r"there is mass around \d+ where .* \{\d+: -1.67\}.*fit\(\.\.\., modes=\d+\)"
    with pytest.warns(UserWarning, match=message):
        posterior = quick(model, steps=100, base=dist.Normal(torch.zeros(COUNT), 1.0).to_event(1))
    assert (posterior.draws["d"] > 0).float().mean() > 0.99


@pytest.mark.slow
def test_fit_covers_modes_that_multiply_by_itself() -> None:
    posterior = quick(model, steps=300)
    assert isinstance(posterior.guide.base, ProductBase)
    draws = posterior.guide.sample(20_000, seed=1)["d"]
    assert ((draws > 0).float().mean(0) - RIGHT).abs().max() < 0.02


@pytest.mark.slow
def test_fit_with_modes_covers_modes_that_multiply() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        posterior = quick(model, modes=4, steps=300)
    assert isinstance(posterior.guide.base, ProductBase)
    draws = posterior.guide.sample(20_000, seed=1)["d"]
    assert ((draws > 0).float().mean(0) - RIGHT).abs().max() < 0.02
    assert posterior.diagnostics.elbo == pytest.approx(COUNT * LEVEL, abs=0.1)
    assert posterior.diagnostics.log_evidence == pytest.approx(COUNT * LEVEL, abs=0.03)


def test_a_product_as_base_is_kept(tmp_path: Path) -> None:
    def three() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    guide = AutoFlow(three, FLOW).setup()
    guide.base = base().to(torch.zeros(()))
    posterior = Posterior(guide, LogJoint(three, (), {}, guide.space), History())
    posterior.save(tmp_path / "posterior.pt")
    back = Posterior.load(tmp_path / "posterior.pt", three, guide=AutoFlow(three, FLOW))
    torch.testing.assert_close(back.log_weights, posterior.log_weights)
