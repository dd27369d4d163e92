"""The VAE and its encoder: the ELBO is Pyro's, the likelihood is right, training resumes, bad input is refused."""

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from cases import SMALL, moved
from pyroflows import VAE, CompiledTrace_ELBO, FlowDistribution, FlowEncoder, FlowPrior, NormalPrior, flows
from pyroflows.transforms import FlowTransform
from pyroflows.vae.check import CheckedBatches

REALNVP = partial(flows.realnvp, layers=2, **SMALL)
POSTERIORS = {
    "none": None,
    "iaf": partial(flows.iaf, layers=1, **SMALL),
    "realnvp": REALNVP,
    "nsf": partial(flows.nsf, layers=2, **SMALL),
}
quiet = {"progress": False}


def bits(rows: int) -> Tensor:
    """Rows of eight bits: the first half equal, the second half equal."""
    return torch.randint(2, (rows, 2)).float().repeat_interleave(4, dim=-1)


def unit_normal(loc: Tensor) -> dist.Normal:
    return dist.Normal(loc, 1.0)


def build(posterior: str = "none", prior: nn.Module | None = None, **options: bool) -> VAE:
    encoder = FlowEncoder(nn.Sequential(nn.Linear(8, 16), nn.Tanh()), 16, 2, POSTERIORS[posterior], **options)
    return VAE(encoder, nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 8)), prior or FlowPrior(2, REALNVP))


def linear_vae(posterior: FlowTransform | None = None) -> tuple[VAE, Tensor]:
    """A linear Gaussian model, whose likelihood is known, with a poor posterior; and its weight matrix."""
    decoder = nn.Linear(2, 3, bias=False)
    vae = VAE(FlowEncoder(nn.Linear(3, 4), 4, 2, posterior), decoder, NormalPrior(2), unit_normal)
    return vae, decoder.weight.detach()


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", POSTERIORS)
def test_encoder(name: str, full: bool) -> None:
    encoder = FlowEncoder(nn.Linear(5, 16), 16, 3, POSTERIORS[name], full=full)
    x = torch.randn(6, 5)
    z, gaussian = torch.randn(6, 3), FlowDistribution(transform=encoder.transform[0].condition(encoder.net(x)))
    assert_close(encoder(x).log_prob(z), gaussian.log_prob(z), rtol=1e-4, atol=1e-4)
    assert len(gaussian.sample().unique(dim=0)) == 6
    moved(encoder, by=0.2)
    posterior = encoder(x)
    assert posterior.batch_shape == (6,)
    draws = posterior.rsample((4,))
    assert draws.shape == (4, 6, 3)
    posterior.log_prob(draws).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    one = encoder(x[2:3]).log_prob(z[2:3])
    assert_close(posterior.log_prob(z)[2:3], one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("posterior", "prior"),
    [
        ("none", lambda: NormalPrior(2)),
        ("none", lambda: FlowPrior(2, REALNVP, components=3)),
        *((name, lambda: FlowPrior(2, REALNVP)) for name in ("iaf", "nsf")),
        *(pytest.param(name, lambda: FlowPrior(2, REALNVP), marks=pytest.mark.slow) for name in ("none", "realnvp")),
    ],
)
def test_trains(posterior: str, prior: Callable[[], nn.Module]) -> None:
    vae, x = build(posterior, prior()), bits(200)
    before = copy.deepcopy(vae.state_dict())
    log = vae.fit(DataLoader(x, 20, shuffle=True), epochs=10, lr=0.03, validation=[bits(100)], **quiet)
    assert log.validation[-1] < 4.5 < log.train[0]
    assert log.best_epoch > 1
    assert all(not torch.equal(before[name], p) for name, p in vae.named_parameters())


def test_elbo_is_that_of_pyro() -> None:
    vae, x = moved(build("iaf"), by=0.1), bits(5)
    with torch.no_grad():
        many = x.repeat(100, 1)
        ours = vae.elbo(many.repeat(6, 1)).view(600, 5).sum(-1)
        theirs = torch.tensor([-Trace_ELBO().loss(vae.model, vae.guide, many) / 100 for _ in range(6)])
    error = (2 * ours.var() / 600).sqrt()  # Pyro's are means of as many draws
    assert abs(ours.mean() - theirs.mean()) < 4 * error


@pytest.mark.parametrize("elbo", [Trace_ELBO, partial(CompiledTrace_ELBO, compile=False, strict=True)])
def test_in_plain_pyro(elbo: type) -> None:
    vae, x = build("realnvp"), bits(50)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.02}), elbo())
    losses = [svi.step(x) for _ in range(75)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert Predictive(vae.model, guide=vae.guide, num_samples=3)(x)["z"].shape[0] == 3


def test_elbo_leaves_the_prior_out_of_pyros_store() -> None:
    pyro.clear_param_store()
    vae = build(prior=FlowPrior(2))
    vae.elbo(bits(3))
    assert not {id(p) for p in vae.prior.parameters()} & {id(p) for p in pyro.get_param_store().values()}


def test_nuts_over_the_latents_of_a_trained_vae() -> None:
    vae, x = build(), bits(2)
    vae.requires_grad_(False).eval()
    mcmc = MCMC(NUTS(vae.model, max_tree_depth=3), num_samples=6, warmup_steps=4, disable_progbar=True)
    mcmc.run(x)
    z = mcmc.get_samples()["z"]
    assert z.shape == (6, 2, 2)
    assert len(z.unique(dim=0)) > 2


@pytest.mark.parametrize("samples", [2000, 5000])
def test_log_likelihood_of_a_linear_model(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyroflows.vae.vae.CHUNK", 3000)
    vae, weight = linear_vae()
    x = torch.randn(7, 3)
    exact = dist.MultivariateNormal(torch.zeros(3), weight @ weight.T + torch.eye(3)).log_prob(x)
    assert_close(vae.log_likelihood(x, samples), exact, rtol=0, atol=0.15)
    with torch.no_grad():
        mean = torch.stack([vae.elbo(x) for _ in range(500)]).mean(0)
    assert (mean < exact + 0.1).all()


def test_images_and_what_is_made_of_them() -> None:
    vae, x = build("iaf"), bits(300)
    vae.fit(DataLoader(x, 20, shuffle=True), epochs=30, lr=0.01, **quiet)
    assert (vae.reconstruct(x[:50]).round() == x[:50]).float().mean() > 0.9
    made = vae.generate(200)
    assert made.shape == (200, 8)
    assert ((made.round()[:, :4].std(-1) == 0).float().mean()) > 0.7
    path = vae.interpolate(x[0], x[1], steps=6)
    assert path.shape == (6, 8)
    assert vae.generate(500, temperature=0.1).var(0).sum() < vae.generate(500).var(0).sum()


def test_images_of_two_dimensions() -> None:
    decoder = nn.Sequential(nn.Linear(2, 16), nn.Unflatten(-1, (4, 4)))
    vae = VAE(FlowEncoder(nn.Sequential(nn.Flatten(), nn.Linear(16, 8)), 8, 2), decoder, NormalPrior(2))
    x = (torch.rand(10, 4, 4) < 0.5).float()
    assert vae.elbo(x).shape == (10,)
    assert vae.generate(3).shape == (3, 4, 4)
    assert vae.log_likelihood(x, 5).shape == (10,)


def test_classes_as_context() -> None:
    labels = torch.randint(2, (300,))
    onehot, x = torch.eye(2)[labels], labels.float().unsqueeze(-1).expand(300, 8).contiguous()
    vae = build(prior=FlowPrior(2, REALNVP, context_dim=2))
    vae.fit(DataLoader(TensorDataset(x, onehot), 30, shuffle=True), epochs=40, lr=0.01, **quiet)
    made = vae.generate(100, context=torch.eye(2)[torch.arange(100) % 2])
    assert_close(made.mean(-1).round(), torch.arange(100) % 2, check_dtype=False)
    assert vae.interpolate(x[0], x[1], 4, torch.eye(2)[0]).shape == (4, 8)
    with_labels = vae.log_likelihood(x, 50, context=onehot).mean()
    assert with_labels > vae.log_likelihood(x, 50, context=onehot.flip(-1)).mean() + 1


def test_labels_are_left_alone_without_a_context() -> None:
    plain, x = build(), bits(20)
    labelled = copy.deepcopy(plain)
    losses = []
    for vae, data in ((plain, [x]), (labelled, [x, torch.arange(20)])):
        torch.manual_seed(1)
        losses.append(vae.fit(DataLoader(TensorDataset(*data), 10), epochs=2, **quiet).train)
    assert losses[0] == losses[1]
    assert_close(labelled.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    start, x = build(), bits(60)
    loader = DataLoader(x, 20, shuffle=True)
    straight, stopped, resumed = (copy.deepcopy(start) for _ in range(3))
    torch.manual_seed(1)
    whole = straight.fit(loader, epochs=5, **quiet)
    torch.manual_seed(1)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(interrupted(loader, 4), epochs=5, checkpoint=tmp_path / "vae.pt", **quiet)
    log = resumed.fit(loader, epochs=5, checkpoint=tmp_path / "vae.pt", **quiet)
    assert log == whole
    assert_close(resumed.state_dict(), straight.state_dict(), rtol=0, atol=0)


class interrupted:
    """A loader that is stopped by the user after some epochs; a checkpoint looks at its first batch twice."""

    def __init__(self, loader: Iterable, epochs: int) -> None:
        self.loader, self.left = loader, epochs

    def __iter__(self) -> Iterable:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return iter(self.loader)


def test_a_checkpoint_of_other_data(tmp_path: Path) -> None:
    path, x, vae = tmp_path / "vae.pt", bits(20), build()
    vae.fit(DataLoader(x, 10, shuffle=True), epochs=1, checkpoint=path, **quiet)
    content = path.read_bytes()
    for other in (x.roll(1, 1), 1 - x):
        with pytest.raises(ValueError, match=r"a checkpoint of the same call, with .* over the first batch of data"):
            vae.fit(DataLoader(other, 10, shuffle=True), epochs=2, checkpoint=path, **quiet)
        assert path.read_bytes() == content
    assert len(vae.fit(DataLoader(x, 10, shuffle=True), epochs=2, checkpoint=path, **quiet).train) == 2


def test_data_that_come_once_or_at_random_are_not_compared() -> None:
    def batches(loader: Iterable) -> dict:
        return CheckedBatches(loader, lambda x, context: (x, context), False).described()

    class noisy:
        def __iter__(self) -> Iterator[Tensor]:
            yield torch.from_numpy(numbers.normal(size=(2, 3)))

    numbers, once = np.random.default_rng(0), iter([torch.ones(2, 3)])
    assert batches(once) == batches(noisy()) == {}
    assert next(once) is not None
    assert batches([torch.ones(2, 3)])["a sum over the first batch of data"] == 6


def test_a_checkpoint_of_another_architecture(tmp_path: Path) -> None:
    path, x = tmp_path / "vae.pt", [bits(10)]
    build("iaf").fit(x, epochs=1, checkpoint=path, **quiet)
    content, other = path.read_bytes(), build("none")
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=r"VAE\.fit expected a checkpoint of .* of shape none, got .*vae\.pt, with \["):
        other.fit(x, epochs=1, checkpoint=path, **quiet)
    assert path.read_bytes() == content
    assert_close(other.state_dict(), before, rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    vae = build("iaf").cuda()
    vae.fit([bits(10)], epochs=2, **quiet)
    assert vae.generate(3).is_cuda


def nan_pixels() -> Tensor:
    x = bits(10)
    x[2, 3] = torch.nan
    return x


NARROW = VAE(FlowEncoder(nn.Linear(8, 4), 4, 2), nn.Linear(2, 7), NormalPrior(2))
SQUARE = VAE(FlowEncoder(nn.Unflatten(-1, (2, 4)), 4, 2), nn.Linear(2, 8), NormalPrior(2))
CLASSES = build(prior=FlowPrior(2, REALNVP, context_dim=2))
WRONG = {
    "range": (lambda: build().fit([255 * bits(10)], 1, **quiet), "support of its likelihood, Boolean.*from 0 to 255"),
    "range_score": (lambda: build().log_likelihood(bits(3) - 1.0), "got values from -1 to 0: scale or binarise them"),
    "nan": (lambda: build().fit([nan_pixels()], 1, **quiet), "VAE expected numbers, got NaN in 1 of 80 pixels"),
    "nan_score": (lambda: build().log_likelihood(nan_pixels()), "VAE expected numbers, got NaN in 1 of 80 pixels"),
    "empty": (lambda: build().fit([], 1, **quiet), "at least one batch, got none: the data or the loader is empty"),
    "decoder": (lambda: NARROW.fit([bits(10)], 1, **quiet), r"of shape \(10, 8\) for latents .*, got \(10, 7\)"),
    "features": (lambda: SQUARE.elbo(bits(3)), r"features of shape \(3, 4\) for 3 rows, got \(3, 2, 4\)"),
    "context_rows": (lambda: CLASSES.log_likelihood(bits(3), 5, torch.eye(2)), "3 rows of context, .* got 2"),
    "more_context": (lambda: CLASSES.fit([(bits(3), torch.ones(4, 2))], 1, **quiet), "3 rows of context, .* got 4"),
    "no_context": (lambda: CLASSES.elbo(bits(3)), r"expected a context of shape \(..., 2\), got none"),
    "context": (lambda: NARROW.generate(2, context=torch.eye(2)), "NormalPrior expected no context, got one"),
    "samples": (lambda: NARROW.log_likelihood(bits(3), 0), "expected samples to be a whole number from 1 on, got 0"),
    "temperature": (lambda: NARROW.generate(2, temperature=-1.0), "expected a temperature above 0, got -1.0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "got none: the data or the loader is empty"),
        ([nan_pixels()], "NaN in 1 of 80 pixels"),
        pytest.param([bits(10) + 1.0], "got values from 1 to 2", marks=pytest.mark.slow),
        ([bits(10)[:, :7]], "mat1 and mat2 shapes"),
        pytest.param([(bits(3), torch.ones(4, 2))], "3 rows of context, .* got 4", marks=pytest.mark.slow),
    ],
    ids=["empty", "nan", "range", "shape", "more_context"],
)
def test_bad_data_leave_training_intact(bad: list, message: str, tmp_path: Path) -> None:
    vae, path = build(prior=FlowPrior(2, REALNVP, context_dim=2)), tmp_path / "vae.pt"
    good = [(bits(10), torch.ones(10, 2))]
    vae.fit(good, 1, checkpoint=path, **quiet)
    before, content = copy.deepcopy(vae.state_dict()), path.read_bytes()
    with pytest.raises((ValueError, RuntimeError), match=message):
        vae.fit(bad, 2, **quiet)
    with pytest.raises(ValueError, match=rf"{message}|over the first batch"):
        vae.fit(bad, 2, checkpoint=path, **quiet)
    assert path.read_bytes() == content
    assert_close(vae.state_dict(), before, rtol=0, atol=0)
    assert len(vae.fit(good, 3, checkpoint=path, **quiet).train) == 3
