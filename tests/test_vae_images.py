"""VAEs whose networks convolve: one batch dimension for the networks, any number of draws and particles around."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.testing import assert_close

from pyroflows import VAE, CompiledSVI, CompiledTrace_ELBO, FlowEncoder, FlowPrior, flows

REALNVP = partial(flows.realnvp, layers=2, hidden_dims=(8,))


class Spread(nn.Module):
    """A decoder of images with a scale that all pixels share."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.log_scale = decoder(1), nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor) -> dict[str, Tensor]:
        return {"loc": self.net(z), "scale": self.log_scale.exp()}


def decoder(channels: int) -> nn.Module:
    lines = nn.Sequential(nn.Linear(2, 18), nn.ReLU(), nn.Unflatten(1, (2, 3, 3)), nn.BatchNorm2d(2))
    return lines.append(nn.ConvTranspose2d(2, channels, 2, stride=2))


def grey(made: Tensor) -> dist.Categorical:
    return dist.Categorical(logits=made.movedim(-3, -1).unsqueeze(-4))


LIKELIHOODS = {
    "bits": (partial(decoder, 1), lambda logits: dist.Bernoulli(logits=logits)),
    "normal": (Spread, lambda made: dist.Normal(**made)),
    "grey": (partial(decoder, 5), grey),
}
IMAGES = torch.randint(2, (10, 1, 6, 6), generator=torch.Generator().manual_seed(0)).float()


def build(likelihood: str = "bits", context_dim: int = 0) -> VAE:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8))
    made, law = LIKELIHOODS[likelihood]
    encoder = FlowEncoder(net, 8, 2, REALNVP)
    return VAE(encoder, made(), FlowPrior(2, partial(flows.realnvp, layers=2), context_dim), law)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_d6_every_method(likelihood: str) -> None:
    vae = build(likelihood)
    vae.fit([IMAGES, IMAGES], epochs=1, validation=[IMAGES], progress=False)
    assert vae.elbo(IMAGES).shape == vae.log_likelihood(IMAGES, samples=7).shape == (10,)
    assert vae.log_likelihood(IMAGES, samples=2000).isfinite().all()
    made = vae.reconstruct(IMAGES), vae.generate(3), vae.generate(1), vae.interpolate(IMAGES[0], IMAGES[1], 4)
    assert [tuple(m.shape) for m in made] == [(n, 1, 6, 6) for n in (10, 3, 1, 4)]
    assert not any(m.isnan().any() for m in made)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO, RenyiELBO, CompiledTrace_ELBO])
@pytest.mark.parametrize("likelihood", ["bits", "normal"])
def test_d6_particles_side_by_side(elbo: type, likelihood: str) -> None:
    pyro.clear_param_store()
    vae = build(likelihood)
    if elbo is CompiledTrace_ELBO:
        vae.eval()  # running statistics are not traced
    options = (
        {"compile": False} if elbo is CompiledTrace_ELBO else {"vectorize_particles": True, "max_plate_nesting": 4}
    )
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), elbo(num_particles=3, **options))
    assert all(math.isfinite(svi.step(IMAGES)) for _ in range(3))


def test_d6_draws_side_by_side() -> None:
    vae = build().eval()
    predictive = Predictive(vae.model, guide=vae.guide, num_samples=5, parallel=True)
    assert predictive(IMAGES)["z"].shape[0] == 5
    assert math.isfinite(
        CompiledSVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), CompiledTrace_ELBO()).step(IMAGES)
    )


def test_d6_the_likelihood_is_that_of_one_draw_at_a_time() -> None:
    vae, z = build().eval(), torch.randn(3, 10, 2)
    together = vae._likelihood(z, IMAGES).log_prob(IMAGES)
    assert_close(together, torch.stack([vae._likelihood(part, IMAGES).log_prob(IMAGES) for part in z]))


def test_d6_contexts() -> None:
    vae, given = build(context_dim=3), torch.eye(3)[torch.arange(10) % 3]
    assert vae.log_likelihood(IMAGES, 4, given).shape == (10,)
    assert vae.generate(10, context=given).shape == (10, 1, 6, 6)


def test_d8_a_likelihood_without_a_mean_gives_its_mode() -> None:
    drawn = build("grey").generate(20)
    assert (drawn == drawn.round()).all()
    assert drawn.unique().numel() > 1
    vae = VAE(FlowEncoder(nn.Linear(3, 4), 4, 2), nn.Linear(2, 3), FlowPrior(2), lambda loc: dist.Cauchy(loc, 1.0))
    assert vae.generate(4).isfinite().all()


def test_d4_data_are_converted_to_the_precision_of_the_model() -> None:
    vae = build()
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    assert math.isfinite(svi.step(IMAGES.double()))
    assert vae.log_likelihood(IMAGES.double(), 3).dtype == torch.float32
