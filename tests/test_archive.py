"""Posterior.save and load: the same posterior comes back, anything else is refused; report: one page."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pyroflows import AutoFlow, Posterior, files, flows
from pyroflows.distributions import MixtureBase
from pyroflows.model import LogJoint
from pyroflows.posterior import archive
from pyroflows.training import History

Y = torch.tensor([1.0, 2.0, 4.0])
FLOW = partial(flows.realnvp, layers=2, hidden_dims=[8])


def model(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(mean, scale), obs=y)


def part(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("row", len(y), subsample_size=2):
        pyro.sample("y", dist.Normal(mean, scale), obs=y[:2])


def other(y: Tensor) -> None:
    pyro.sample("mean", dist.Normal(0.0, 10.0))
    pyro.sample("scale", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))


def made(model: object = model) -> Posterior:
    guide = AutoFlow(model, FLOW).setup(Y)
    with torch.no_grad():
        for parameter in guide.transform.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    history = History([-3.0, float("nan"), -2.0], [0.5, float("nan"), 0.3], 1, "the ELBO no longer rises", "traced")
    return Posterior(guide, LogJoint(model, (Y,), {}, guide.space), history, num_draws=300, seed=4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "posterior.pt"


def test_a_posterior_comes_back(path: Path) -> None:
    posterior = made()
    posterior.save(path)
    back = Posterior.load(path, model, Y, guide=AutoFlow(model, FLOW))
    assert_close(back.draws, posterior.draws, rtol=0, atol=0)
    assert (back.log_weights == posterior.log_weights).all()
    assert back.diagnostics == posterior.diagnostics
    assert (back.num_draws, back.seed) == (300, 4)
    assert str(back.history) == str(posterior.history)


def test_the_guide_of_fit_needs_no_name(path: Path) -> None:
    guide = AutoFlow(model, flows.with_tails).setup(Y)
    posterior = Posterior(guide, LogJoint(model, (Y,), {}, guide.space), History())
    posterior.save(path)
    assert Posterior.load(path, model, Y).seed == posterior.seed > 2**32  # a20: no seed that data come from
    assert_close(Posterior.load(path, model, Y).sample(5, seed=1), posterior.sample(5, seed=1))
    assert_close(Posterior.load(path, model, y=Y).sample(5, seed=1), posterior.sample(5, seed=1))


def test_the_file_holds_no_code(path: Path) -> None:
    made().save(path)
    found = torch.load(path, weights_only=True)
    assert set(found) == set(archive.KEYS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ((model, Y + 1.0), "expected the model and data of the saved posterior, whose log joint at a draw is -"),
        ((other, Y), r"expected a model with the saved latents {'mean': \[\], 'scale': \[\]}, got .*'scale': \[2\]"),
    ],
)
def test_another_model(path: Path, call: tuple, message: str) -> None:
    made().save(path)
    with pytest.raises(ValueError, match=message):
        Posterior.load(path, *call, guide=AutoFlow(call[0], FLOW))


@pytest.mark.parametrize("flow", [partial(flows.realnvp, layers=4, hidden_dims=[8]), flows.iaf])
def test_another_flow(path: Path, flow: object) -> None:
    made().save(path)
    with pytest.raises(ValueError, match=r"expected a guide made like the saved one, with .*pass guide=AutoFlow"):
        Posterior.load(path, model, Y, guide=AutoFlow(model, flow))


def test_a_mixture_as_base_is_kept(path: Path) -> None:
    guide = AutoFlow(model, FLOW).setup(Y)
    guide.base = MixtureBase(
        torch.tensor([0.0, 1.0]), torch.tensor([[-3.0, 0.0], [3.0, 0.0]]), torch.eye(2).repeat(2, 1, 1)
    )
    posterior = Posterior(guide, LogJoint(model, (Y,), {}, guide.space), History())
    posterior.save(path)
    back = Posterior.load(path, model, Y, guide=AutoFlow(model, FLOW))
    assert_close(back.log_weights, posterior.log_weights)


def test_another_base(path: Path) -> None:
    made().save(path)
    heavy = AutoFlow(model, FLOW, base=lambda d: dist.StudentT(torch.full((d,), 4.0)).to_event(1))
    with pytest.raises(ValueError, match=r"expected a guide with the saved base, got one with .*StudentT.*: pass"):
        Posterior.load(path, model, Y, guide=heavy)


def test_the_precision_of_the_log_joint_is_kept(path: Path) -> None:
    guide = AutoFlow(model, FLOW).setup(Y)
    density = LogJoint(model, (Y,), {}, guide.space, dtype=torch.float64)
    Posterior(guide, density, History()).save(path)
    assert Posterior.load(path, model, Y, guide=AutoFlow(model, FLOW)).log_joint.dtype == torch.float64


@pytest.mark.usefixtures("_float64")
def test_another_precision(path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    made().save(path)
    torch.set_default_dtype(torch.float64)
    with pytest.raises(ValueError, match=r"torch\.float32\), got .*under the same default dtype"):
        Posterior.load(path, model, Y.double(), guide=AutoFlow(model, FLOW))


def test_a_minibatch_has_no_fingerprint(path: Path) -> None:
    posterior = made(part)
    posterior.save(path)
    back = Posterior.load(path, model, Y, guide=AutoFlow(model, FLOW))
    assert_close(back.draws, posterior.draws)


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_another_file(path: Path, content: bytes | None) -> None:
    if content is None:
        torch.save({"weight": Y}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"expected a file (of Posterior\.save|in the format)"):
        Posterior.load(path, model, Y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda found: found.pop("seed"),
            r"expected a file of Posterior.save .* without \['seed'\] and with \[\]",
        ),
        (lambda found: found.update(colour=1), r"without \[\] and with \['colour'\] besides: another version"),
        (lambda found: found["history"].pop("elbo"), r"expected the history in .* got one without \['elbo'\]"),
        (lambda found: found.update(history=3), r"expected the history in .* got a int"),
        (lambda found: found.update(format="x"), "expected a file in the format 'pyroflows posterior 2'"),
    ],
)
def test_b4_keys_that_are_missing_or_too_many(path: Path, change: Callable, message: str) -> None:
    made().save(path)
    found = files.read(path, "a file")
    change(found)
    files.write(found, path)
    with pytest.raises(ValueError, match=message):
        Posterior.load(path, model, Y, guide=AutoFlow(model, FLOW))


def with_factor(y: Tensor, factor: Callable[[Tensor], Tensor]) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(mean, scale), obs=y)
    pyro.factor("factor", factor(mean))


@pytest.mark.parametrize("factor", [lambda x: -x.square(), lambda x: 0.01 * x.abs(), lambda x: -1.0 * (x > 0)])
def test_b6_a_factor_that_vanishes_at_the_centre(path: Path, factor: Callable) -> None:
    posterior = made()
    posterior.guide.start_at(torch.zeros(2), torch.eye(2))
    posterior.save(path)
    changed = partial(with_factor, factor=factor)
    with pytest.raises(ValueError, match=r"expected the model and data .*, and another at \d+ of 17 points"):
        Posterior.load(path, changed, Y, guide=AutoFlow(changed, FLOW))
    same = partial(with_factor, factor=torch.zeros_like)
    assert_close(Posterior.load(path, same, Y, guide=AutoFlow(same, FLOW)).draws, posterior.draws)


def test_b6_one_datum_of_many(path: Path) -> None:
    y, other = torch.randn(20_000), Y
    guide = AutoFlow(model, FLOW).setup(y)
    posterior = Posterior(guide, LogJoint(model, (y,), {}, guide.space, dtype=torch.float64), History())
    posterior.save(path)
    other = y.clone()
    other[7] += 1.0
    with pytest.raises(ValueError, match="expected the model and data of the saved posterior"):
        Posterior.load(path, model, other, guide=AutoFlow(model, FLOW))


def learning(y: Tensor) -> None:
    prior = pyro.param("prior", torch.tensor([0.0, 1.0]))
    mean = pyro.sample("mean", dist.Normal(prior[0], prior[1].exp()))
    pyro.deterministic("prior_mean", prior[0])
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_the_parameters_of_the_model_come_back(path: Path) -> None:
    pyro.param("prior", torch.tensor([3.0, 0.5]))
    posterior = made(learning)
    posterior.save(path)
    pyro.clear_param_store()
    back = Posterior.load(path, learning, Y, guide=AutoFlow(learning, FLOW))
    assert (back.draws["prior_mean"] == 3.0).all()
    assert (back.log_weights == posterior.log_weights).all()
    with pytest.raises(ValueError, match=r"expected a model with the saved parameters {'prior': \(2,\)}, got {}"):
        Posterior.load(path, sighted, Y, guide=AutoFlow(sighted, FLOW))


def sighted(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(3.0, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_a_file_that_is_not_there(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Posterior.load(path, model, Y)


def test_the_report_is_one_page(tmp_path: Path) -> None:
    posterior = made()
    text = posterior.report()
    assert text.startswith("Posterior of mean, scale\n\n")
    assert posterior.diagnostics.verdict in text
    assert text.endswith("3 steps, 1 dropped; stopped: the ELBO no longer rises")
    assert posterior.report(tmp_path / "fit.html") == text
    page = (tmp_path / "fit.html").read_text()
    assert page.count("<img ") == 2
    assert page.count("data:image/png;base64,iVBOR") == 2
    assert "k-hat" in page
    assert "&gt;= 0.7" in page or "&lt; 0.7" in page
    plt.close("all")
