"""What fit and log joints are given that they cannot take: misspelt options, dtypes, supports, no rows at all."""

import inspect
import logging
from collections.abc import Callable, Iterator
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.testing import assert_close

from pyroflows import AutoFlow, calibrate, fit, log_joint
from pyroflows.compile import capture
from pyroflows.fitting.options import check_arguments


def model(y: Tensor, scale: float = 1.0) -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, scale), obs=y)


class Model(nn.Module):
    def forward(self, y: Tensor, *, scale: float = 1.0) -> None:
        model(y, scale)


def any_name(y: Tensor, **options: float) -> None:
    model(y, **options)


Y = torch.tensor(1.0)


@pytest.mark.parametrize("one", [model, Model(), partial(model), poutine.scale(model, scale=2.0), Model().forward])
def test_a12_misspelt_options_are_named(one: Callable) -> None:
    with pytest.raises(TypeError, match=r"got 'optimizer', which is neither: the model takes y, scale"):
        fit(one, Y, optimizer=print)
    with pytest.raises(TypeError, match=r"got 'step', which is neither: did you mean 'steps'\?"):
        fit(one, Y, step=3)
    check_arguments(one, {"scale": 2.0}, ["steps"])


def test_a12_misspelt_options_of_calibrate_are_named() -> None:
    message = r"calibrate expected options .* got 'num_simulation', which is neither: did you mean 'num_simulations'\?"
    with pytest.raises(TypeError, match=message):
        calibrate(model, Y, num_simulation=20)


@pytest.mark.parametrize("call", [fit, calibrate])
def test_a12_options_are_passed_by_name_alone(call: Callable) -> None:
    taken, *others = inspect.signature(call).parameters.values()
    kinds = {p.name: p.kind for p in others}
    assert (taken.name, kinds.pop("args"), kinds.pop("kwargs")) == ("model", taken.VAR_POSITIONAL, taken.VAR_KEYWORD)
    assert set(kinds.values()) == {taken.KEYWORD_ONLY}


def test_a12_a_model_may_take_any_name() -> None:
    check_arguments(any_name, {"whatever": 2.0}, ["steps"])
    check_arguments(print, {"sep": ""}, ["steps"])
    check_arguments(dict, {"whatever": 2.0}, ["steps"])  # of no signature
    with pytest.raises(TypeError, match=r"got 'whatever', which is neither: the model takes y, scale"):
        check_arguments(model, {"whatever": 2.0}, ["steps"])


@pytest.fixture(params=[torch.float16, torch.bfloat16])
def half(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


def test_a12_sixteen_bits_are_refused(half: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"fit expected single or double precision as default, got {half}"):
        fit(model, Y)
    with pytest.raises(ValueError, match=f"single or double precision, got the site 'x' of {half}"):
        AutoFlow(model).setup(Y)


def test_a12_no_rows() -> None:
    density, z = log_joint(model, Y), torch.zeros(0, 1, requires_grad=True)
    value = density(z)
    assert value.shape == (0,)
    assert torch.autograd.grad(value.sum(), z)[0].shape == (0, 1)
    assert density(torch.zeros(2, 0, 1)).shape == (2, 0)
    assert {name: part.shape for name, part in density.terms(z).items()}["the site 'y'"] == (0,)
    assert density.constrain(z)["x"].shape == (0,)
    assert_close(density.unconstrain(density.constrain(z)), z)


def wishart() -> None:
    pyro.sample("s", torch.distributions.Wishart(torch.tensor(5.0), torch.eye(2)))


@pytest.mark.filterwarnings("ignore:Singular sample detected:UserWarning")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (wishart, "got the site 's' of Wishart on .*: sample it as a function of latents on one, .* LKJCholesky"),
        (
            lambda: pyro.sample("z", dist.Normal(torch.tensor(1j), torch.tensor(1.0), validate_args=False)),
            "the site 'z' of torch.complex64: .* two real ones",
        ),
    ],
)
def test_a12_sites_that_cannot_be_fitted(wrong: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(wrong)


def test_a12_inductor_says_nothing_of_shims(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    log = logging.getLogger("torch._inductor.ir")

    def compile(module: nn.Module, *given: object, **options: object) -> Callable:
        log.warning("%s is missing a c-shim implementation, using proxy executor as fallback", "aten.x")
        log.warning("something else")
        return module.forward

    monkeypatch.setattr("torch._inductor.compile", compile)
    weight = torch.ones(2, requires_grad=True)
    capture(weight.sum).compile([])
    assert [record.message for record in caplog.records] == ["something else"]
