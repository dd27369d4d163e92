"""The log joint of a model: against Pyro's own traces, batched, with minibatches, branches and handlers."""

import warnings
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroSample
from torch import Tensor
from torch.testing import assert_close

from pyroflows import log_joint
from pyroflows.compile import TracedDensity
from pyroflows.model import LogJoint

Y = torch.tensor([[1.0, -0.5], [0.3, 2.0], [0.0, 0.7]])


def hierarchy(y: Tensor, *, sd: float = 1.0) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("columns", 2, dim=-1):
        tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
        with pyro.plate("rows", 3, dim=-2):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta * weights[0], sd), obs=y)


def pyro_value(model: Callable, values: dict[str, Tensor], *args: object, **kwargs: object) -> Tensor:
    return poutine.trace(poutine.condition(model, values)).get_trace(*args, **kwargs).log_prob_sum()


def test_is_the_trace_of_pyro_and_the_jacobian() -> None:
    density = log_joint(hierarchy, Y, sd=0.5)
    z = torch.randn(density.size)
    values, ladj = density.space.constrain(z)
    assert_close(density(z), pyro_value(hierarchy, values, Y, sd=0.5) + ladj)


def test_arguments_reach_the_model() -> None:
    z = torch.zeros(11)
    assert log_joint(hierarchy, Y)(z) != log_joint(hierarchy, Y, sd=0.5)(z)
    assert log_joint(hierarchy, Y)(z) != log_joint(hierarchy, Y + 1)(z)


@pytest.mark.parametrize("batch", [(4,), (2, 3), (1,)], ids=str)
def test_a_batch_is_row_by_row(batch: tuple[int, ...]) -> None:
    density = log_joint(hierarchy, Y)
    z = torch.randn(*batch, density.size)
    rows = [density(row) for row in z.reshape(-1, density.size)]
    assert rows[0].shape == ()
    assert_close(density(z), torch.stack(rows).reshape(batch))


def test_the_gradient_is_that_of_pyro() -> None:
    density = log_joint(hierarchy, Y)
    z = torch.randn(5, density.size, requires_grad=True)
    (grad,) = torch.autograd.grad(density(z).sum(), z)
    u = z[3].detach().requires_grad_()
    values, ladj = density.space.constrain(u)
    (expected,) = torch.autograd.grad(pyro_value(hierarchy, values, Y) + ladj, u)
    assert_close(grad[3], expected)


def test_the_density_of_one_scale_is_known() -> None:
    density = log_joint(lambda: pyro.sample("scale", dist.LogNormal(0.3, 0.7)))
    z = torch.linspace(-2.0, 2.0, 7).unsqueeze(-1)
    assert_close(density(z), dist.Normal(0.3, 0.7).log_prob(z.squeeze(-1)))


def test_values_and_vectors_are_two_names_of_one_point() -> None:
    density = log_joint(hierarchy, Y)
    z = torch.randn(4, density.size)
    values = density.constrain(z)
    assert values["theta"].shape == (4, 3, 2)
    assert_close(density.unconstrain(values), z, atol=1e-4, rtol=1e-4)


def test_float64_throughout() -> None:
    def model() -> None:
        beta = pyro.sample("beta", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
        mean = torch.ones(3, 2, dtype=torch.float64) @ beta
        pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=torch.ones(3, dtype=torch.float64))

    density = log_joint(model)
    assert density(torch.zeros(2, 2, dtype=torch.float64)).dtype == torch.float64
    assert density.observed()["y"][0].dtype == "float64"


def test_a_model_need_not_be_vectorised() -> None:
    def model() -> None:
        loc = torch.eye(2) @ pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        for i in pyro.plate("i", 2):
            pyro.sample(f"y{i}", dist.Normal(loc[i], 1.0), obs=Y[i, 0])

    z = torch.randn(3, 2)
    expected = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + dist.Normal(z, 1.0).log_prob(Y[:2, 0]).sum(-1)
    assert_close(log_joint(model)(z), expected)


def minibatch(y: Tensor, size: int) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y), subsample_size=size) as rows:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])


def test_a_minibatch_is_scaled_to_all_rows() -> None:
    same, z = torch.full((12,), 0.7), torch.tensor([0.4])
    assert_close(log_joint(minibatch, same, 3)(z), log_joint(minibatch, same, 12)(z))


def test_minibatches_are_right_on_average() -> None:
    y, z = torch.linspace(-2.0, 3.0, 8), torch.tensor([0.4])
    full, part = log_joint(minibatch, y, 8)(z), log_joint(minibatch, y, 2)
    found = torch.stack([part.batch(z[None])[0] for _ in range(400)])
    error = found.std() / 20
    assert found.std() > 1.0
    assert abs(found.mean() - full) < 4 * error


def test_vectors_share_one_minibatch() -> None:
    density = log_joint(minibatch, torch.arange(20.0), 2)
    found = [density.batch(torch.zeros(6, 1)) for _ in range(3)]
    assert all((rows == rows[0]).all() for rows in found)
    assert len({float(rows[0]) for rows in found}) > 1


def branching(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    scale = 1.0 if mu > 0 else 2.0
    pyro.sample("y", dist.Normal(mu, scale), obs=y)


def test_a_model_that_branches_runs_row_by_row() -> None:
    y, z = torch.tensor(0.8), torch.tensor([[-1.0], [0.5], [2.0]])
    density = log_joint(branching, y)
    scale = torch.tensor([2.0, 1.0, 1.0])
    expected = dist.Normal(0.0, 1.0).log_prob(z[:, 0]) + dist.Normal(z[:, 0], scale).log_prob(y)
    with pytest.warns(UserWarning, match=r"runs one by one, .* torch.where. vmap said: ") as caught:
        assert_close(density(z), expected)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        z.requires_grad_()
        assert_close(torch.autograd.grad(density(z).sum(), z)[0], -z + (y - z) / scale[:, None] ** 2)


def test_a_model_that_fails_shows_its_own_error() -> None:
    broken = []

    def model() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        if broken:
            torch.zeros(3) @ x

    density = log_joint(model)
    broken.append(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="inconsistent tensor size"):
            density(torch.zeros(4, 2))


def test_scale_and_mask_count() -> None:
    def model() -> None:
        with poutine.scale(scale=3.0):
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with poutine.mask(mask=torch.tensor([True, False])), pyro.plate("two", 2):
            pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor([1.0, 100.0]))
        pyro.factor("f", -x)

    x = torch.tensor([0.4, -1.0])
    expected = 3 * dist.Normal(0.0, 1.0).log_prob(x) + dist.Normal(x, 1.0).log_prob(torch.tensor(1.0)) - x
    assert_close(log_joint(model)(x.unsqueeze(-1)), expected)
    outside = poutine.scale(model, scale=0.5)
    assert_close(log_joint(outside)(x.unsqueeze(-1)), expected / 2)


def test_parameters_of_the_model_get_gradients() -> None:
    def model() -> None:
        scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
        pyro.sample("x", dist.Normal(0.0, scale))

    log_joint(model)(torch.ones(3, 1)).sum().backward()
    # d/d log(scale) of 3 log N(1; 0, scale)
    assert_close(pyro.param("scale").unconstrained().grad, torch.tensor(3 * (1 / 4 - 1.0)))


def test_observed_values_come_with_their_plates() -> None:
    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.deterministic("twice", 2 * mu)
        pyro.factor("f", -mu)
        with pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 2, dim=-1):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=Y)
        pyro.sample("pair", dist.Normal(mu, 1.0).expand((2,)).to_event(1), obs=Y[0])
        pyro.sample("count", dist.Poisson(1.0), obs=torch.tensor(3.0))

    observed = log_joint(model).observed()
    assert list(observed) == ["y", "pair", "count"]
    assert (observed["y"][0] == Y.numpy()).all()
    assert observed["y"][1] == ("rows", "columns")
    assert (observed["pair"][0].tolist(), observed["pair"][1]) == ([1.0, -0.5], ())
    assert (float(observed["count"][0]), observed["count"][1]) == (3.0, ())


def handed_in(y: Tensor) -> None:
    """Two rows of 20, whichever the plate chooses."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 20, subsample_size=2):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def test_a_minibatch_is_not_an_observation() -> None:
    assert log_joint(handed_in, torch.arange(2.0)).observed() == {}
    for size in (2, 20):
        found, plates = log_joint(minibatch, torch.arange(20.0), size).observed()["y"]
        assert (found == range(20)).all()
        assert plates == ("data",)


def test_a_site_that_the_user_conditions_is_observed() -> None:
    density = log_joint(poutine.condition(hierarchy, data={"mu": torch.tensor(1.0)}), Y)
    assert density.size == 10
    assert list(density.observed()) == ["mu", "y"]


@pytest.mark.parametrize("shape", [(), (3, 10), (11, 1)], ids=str)
def test_vectors_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    density = log_joint(hierarchy, Y)
    with pytest.raises(ValueError, match=r"expected vectors of size 11, got shape \("):
        density(torch.zeros(shape))


def test_an_unsound_model_is_refused() -> None:
    with pytest.raises(ValueError, match="expected continuous latents, got the discrete site 'k'"):
        log_joint(lambda: pyro.sample("k", dist.Poisson(1.0)))


def test_global_state_is_left_alone() -> None:
    with pyro.validation_enabled(True), poutine.trace() as outer:
        density = log_joint(hierarchy, Y)
        density(torch.zeros(3, density.size))
        assert torch.distributions.Distribution._validate_args
    assert len(outer.trace.nodes) == 0


def test_double_precision_for_code_that_names_none() -> None:
    def regression(x: Tensor, y: Tensor) -> None:
        slopes = pyro.sample("slopes", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x @ torch.eye(2) @ slopes, 1.0).to_event(1), obs=y)

    density = LogJoint(regression, (torch.ones(3, 2), torch.ones(3)), {}, dtype=torch.float64)
    nodes = density.trace({"slopes": torch.ones(2, dtype=torch.float64)}).nodes
    assert nodes["y"]["fn"].base_dist.loc.dtype == torch.float64
    assert poutine.trace(density.model).get_trace(*density.args).nodes["slopes"]["value"].dtype == torch.float64
    assert torch.get_default_dtype() == torch.float32


PRIOR = dist.Normal(0.0, 1.0)  # under validation, which reads values


class WithPriors(PyroModule):
    """As in Pyro's tutorial: priors are made with the module."""

    def __init__(self) -> None:
        super().__init__()
        ones = torch.ones(2)
        self.normal = PyroSample(dist.Normal(0.0, 1.0))
        self.vector = PyroSample(dist.Gamma(2.0, 2.0).mask(True).expand([2]).to_event(1))
        self.exp = PyroSample(dist.TransformedDistribution(PRIOR, [dist.transforms.ExpTransform()]))
        self.joint = PyroSample(dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
        self.shares = PyroSample(dist.Dirichlet(ones))
        self.lkj = PyroSample(dist.LKJCholesky(2, 1.0))
        self.mixture = dist.MixtureSameFamily(dist.Categorical(ones), dist.Normal(ones, ones))

    def forward(self, y: Tensor) -> None:
        loc = self.normal + self.joint.sum() + self.lkj.sum() + self.shares[0] + pyro.sample("outer", PRIOR)
        pyro.sample("known", self.mixture, obs=torch.tensor(0.3))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(loc, self.exp + self.vector.sum()), obs=y)


def test_a8_priors_made_before_the_model_are_traced() -> None:
    model = WithPriors()
    density = log_joint(model, Y[0])
    z = 0.1 * torch.randn(3, density.size)
    assert_close(TracedDensity(density, density.space.start, 3)(z), density(z))
    assert model.mixture._validate_args is not False  # those of the user are as they were
    assert PRIOR._validate_args
