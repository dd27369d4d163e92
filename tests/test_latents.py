"""The latents as one vector: there and back over every support, and what a guide refuses."""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import (
    init_to_feasible,
    init_to_mean,
    init_to_median,
    init_to_sample,
    init_to_uniform,
    init_to_value,
)
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor
from torch.distributions import biject_to
from torch.testing import assert_close

from pyroflows import AutoFlow
from pyroflows.model import LatentSpace
from pyroflows.model.check import check_model
from pyroflows.model.latent_space import Site

# A prior for each support, and the size of its unconstrained vector.
PRIORS = {
    "real": (lambda: dist.Normal(torch.zeros(3), 1.0), 3),
    "real_vector": (lambda: dist.MultivariateNormal(torch.zeros(3), torch.eye(3)), 3),
    "positive": (lambda: dist.Gamma(torch.ones(2, 2), 1.0), 4),
    "unit_interval": (lambda: dist.Beta(1.0, 2.0), 1),
    "interval": (lambda: dist.Uniform(-3.0, torch.tensor([1.0, 5.0])), 2),
    "greater_than": (lambda: dist.Pareto(2.0, 1.0), 1),
    "simplex": (lambda: dist.Dirichlet(torch.ones(4)), 3),
    "lower_cholesky": (lambda: dist.LKJCholesky(3, 1.0), 3),
    "ordered": (lambda: dist.ImproperUniform(constraints.ordered_vector, (), (3,)), 3),
    "improper": (lambda: dist.ImproperUniform(constraints.positive, (2,), ()), 2),
    "truncated": (lambda: dist.ImproperUniform(constraints.less_than(2.0), (), ()), 1),
}


def trace_of(model: Callable) -> poutine.Trace:
    """A run of a model from the origin: improper priors cannot be sampled."""

    def origin(site: dict) -> Tensor:
        transform = torch.distributions.biject_to(site["fn"].support)
        return transform(torch.zeros(transform.inverse_shape(site["fn"].shape())))

    return poutine.trace(InitMessenger(origin)(model)).get_trace()


def space_of(model: Callable) -> LatentSpace:
    return LatentSpace.of(trace_of(model))


def hierarchy() -> None:
    pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 3, dim=-2):
        pyro.sample("w", dist.Dirichlet(torch.ones(4)))
        with pyro.plate("columns", 2, dim=-1):
            pyro.sample("s", dist.Gamma(1.0, 1.0))
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)], ids=str)
@pytest.mark.parametrize("name", PRIORS)
def test_round_trip_stays_inside_the_support(name: str, batch: tuple[int, ...]) -> None:
    make, size = PRIORS[name]
    space = space_of(lambda: pyro.sample("x", make()))
    assert space.size == size
    z = torch.randn(*batch, size, dtype=torch.float64)
    values, ladj = space.constrain(z)
    assert values["x"].shape == (*batch, *space.sites[0].shape)
    assert space.sites[0].support.check(values["x"]).all()
    back, other = space.unconstrain(values)
    assert back.shape == z.shape
    assert ladj.shape == other.shape == batch
    assert_close(back, z)
    assert_close(other, -ladj)


@pytest.mark.parametrize("name", sorted(set(PRIORS) - {"simplex", "lower_cholesky"}))
def test_ladj_is_the_log_determinant(name: str) -> None:
    space = space_of(lambda: pyro.sample("x", PRIORS[name][0]()))
    z = torch.randn(space.size, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda u: space.constrain(u)[0]["x"].flatten(), z)
    assert_close(space.constrain(z)[1], torch.linalg.slogdet(jacobian).logabsdet)


def test_ladj_of_a_simplex_is_that_of_its_free_entries() -> None:
    space = space_of(lambda: pyro.sample("x", PRIORS["simplex"][0]()))
    z = torch.randn(3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda u: space.constrain(u)[0]["x"][:-1], z)
    assert_close(space.constrain(z)[1], torch.linalg.slogdet(jacobian).logabsdet)


def test_sites_stand_in_the_order_of_the_model() -> None:
    space = space_of(hierarchy)
    assert [site.name for site in space.sites] == ["mu", "w", "s"]
    assert [(site.start, site.stop) for site in space.sites] == [(0, 1), (1, 10), (10, 16)]
    assert [tuple(site.shape) for site in space.sites] == [(), (3, 1, 4), (3, 2)]
    assert [tuple(site.unconstrained_shape) for site in space.sites] == [(), (3, 1, 3), (3, 2)]
    assert space.size == 16


def test_plates_name_the_batch_dimensions() -> None:
    assert [site.plates for site in space_of(hierarchy).sites] == [(), ("rows", None), ("rows", "columns")]


def test_every_entry_has_its_own_place() -> None:
    space = space_of(hierarchy)
    z = torch.linspace(-1.5, 1.5, 16)
    values, _ = space.constrain(z)
    assert values["mu"] == -1.5
    assert_close(values["s"].log(), z[10:].reshape(3, 2))
    assert_close(space.unconstrain(values)[0], z)


def test_the_start_is_where_the_model_was_run() -> None:
    start = poutine.condition(hierarchy, {"mu": torch.tensor(0.7), "s": torch.full((3, 2), 2.0)})
    trace = poutine.trace(start).get_trace()
    for name in ("mu", "s"):
        trace.nodes[name]["is_observed"] = False
    z = LatentSpace.of(trace).start
    assert_close(z[[0, *range(10, 16)]], torch.tensor([0.7] + 6 * [math.log(2.0)]))


def test_the_start_has_the_dtype_of_the_model() -> None:
    prior = dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0)
    space = LatentSpace.of(poutine.trace(lambda: pyro.sample("x", prior)).get_trace())
    assert space.start.dtype == torch.float64
    assert space.start.shape == (2,)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"expected a value for the site 'mu', got \[\]"),
        ({"mu": torch.zeros(()), "s": 1.0}, r"expected a value for the site 'w', got \['mu', 's'\]"),
        ({"mu": torch.zeros(()), "w": torch.ones(3, 4)}, r"'w' to have shape \(..., 3, 1, 4\), got \(3, 4\)"),
    ],
    ids=["none", "missing", "shape"],
)
def test_wrong_values_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        space_of(hierarchy).unconstrain(values)


def test_a_sound_model_passes() -> None:
    run = check_model(hierarchy)
    assert LatentSpace.of(run).size == space_of(hierarchy).size
    assert run.log_prob_sum().isfinite()


def nothing() -> None:
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))


def discrete() -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("k", dist.Categorical(torch.ones(3)))


def minibatch() -> None:
    with pyro.plate("data", 10, subsample_size=4):
        pyro.sample("x", dist.Normal(0.0, 1.0))


def chosen() -> None:
    with pyro.plate("data", 10, subsample=torch.tensor([1, 7])):
        pyro.sample("x", dist.Normal(0.0, 1.0))


def inner_plate() -> None:
    with pyro.plate("data", 10, subsample_size=4, dim=-1), pyro.plate("other", 2, dim=-2):
        pyro.sample("x", dist.Normal(0.0, 1.0))


def moving_support() -> None:
    top = pyro.sample("top", dist.Gamma(1.0, 1.0))
    pyro.sample("x", dist.Uniform(0.0, top))


def fickle() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    if x > 0.05:
        pyro.sample("z", dist.Normal(0.0, 1.0))


def infinite() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Delta(torch.tensor(2.0)), obs=torch.tensor(1.0))
    pyro.factor("f", x - math.inf)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (nothing, RuntimeError, "expected a model with latent sites, got none"),
        (discrete, ValueError, "expected continuous latents, got the discrete site 'k': .* TraceEnum_ELBO"),
        (minibatch, ValueError, "expected all rows of plate 'data', got 4 of 10 .* site 'x' inside: .* Drop"),
        (chosen, ValueError, "expected all rows of plate 'data', got 2 of 10 chosen rows"),
        (inner_plate, ValueError, "expected all rows of plate 'data', got 4 of 10 chosen rows"),
        (moving_support, ValueError, "expected fixed supports, got the site 'x' whose support depends"),
        (
            infinite,
            ValueError,
            "at the start, got -inf at the sites 'y', 'f': .* init_loc_fn",
        ),
    ],
)
def test_an_unsound_model_is_refused(model: Callable, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_model(model)


@pytest.mark.parametrize("start", [0.0, 0.04])
def test_latents_that_come_and_go_are_refused(start: float) -> None:
    model = InitMessenger(init_to_value(values={"x": torch.tensor(start)}))(fickle)
    with pytest.raises(ValueError, match="expected the same latents in every run, got 'z' in some runs only"):
        check_model(model)


def test_latents_that_go_are_refused() -> None:
    def model() -> None:
        if pyro.sample("x", dist.Normal(0.0, 1.0)) < 0.0:
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="got 'z' in some runs only"):
        check_model(InitMessenger(init_to_value(values={"x": torch.tensor(-0.05)}))(model))


def test_rows_subsampled_in_full_are_all_rows() -> None:
    def model() -> None:
        with pyro.plate("data", 10, subsample_size=10):
            pyro.sample("x", dist.Normal(0.0, 1.0))

    assert LatentSpace.of(check_model(model)).size == 10


def test_a_density_may_be_undefined_near_the_start() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(0.0, 0.05 - x), obs=torch.tensor(0.0))

    run = check_model(InitMessenger(init_to_value(values={"x": torch.tensor(0.0)}))(model))
    assert run.nodes["x"]["value"] == 0.0


def test_checking_leaves_no_trace() -> None:
    with poutine.trace() as outer:
        check_model(hierarchy)
    assert len(outer.trace.nodes) == 0


@pytest.mark.parametrize(
    ("support", "shape", "bounded"),
    [
        (constraints.real, (), False),
        (constraints.positive, (3,), False),
        (constraints.greater_than(3.0), (), False),
        (constraints.less_than(-3.0), (), False),
        (constraints.softplus_positive, (), False),
        (constraints.ordered_vector, (3,), False),
        (constraints.positive_ordered_vector, (3,), False),
        (constraints.interval(5.0, 1e6), (2,), True),
        (constraints.unit_interval, (), True),
        (constraints.simplex, (4,), True),
        (constraints.corr_cholesky, (3, 3), True),
    ],
)
def test_a5_which_supports_are_bounded(support: constraints.Constraint, shape: tuple, bounded: bool) -> None:
    batch, event = shape[: len(shape) - support.event_dim], shape[len(shape) - support.event_dim :]
    value = biject_to(support)(torch.zeros(biject_to(support).inverse_shape(shape)))
    site = Site("x", support, torch.Size(shape), len(event), (None,) * len(batch), 0, torch.float32)
    found = LatentSpace([site], {"x": value}).bounded()["x"]
    assert found.shape == shape
    assert found.all() if bounded else not found.any()


@pytest.mark.parametrize(
    "init", [init_to_median, init_to_uniform, init_to_mean, init_to_feasible, init_to_sample, init_to_value(values={})]
)
def test_f7_discrete_latents_are_one_kind_of_error(init: Callable) -> None:
    with pytest.raises(ValueError, match="expected continuous latents, got the discrete site 'k'"):
        AutoFlow(discrete, init_loc_fn=init).setup()
