"""AutoFlow in a hand-written SVI loop, where AutoNormal would stand: python examples/plain_pyro.py [--smoke]."""

import sys

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyroflows import AutoFlow


def model(x: Tensor, y: Tensor) -> None:
    slope, intercept = (pyro.sample(name, dist.Normal(0.0, 10.0)) for name in ("slope", "intercept"))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x + intercept, noise), obs=y)


pyro.set_rng_seed(0)
x = torch.linspace(-1.0, 1.0, 20)
y = 2.0 * x - 1.0 + 0.3 * torch.randn(20)
guide, elbo = AutoFlow(model), Trace_ELBO(num_particles=32, vectorize_particles=True)
svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 3e-3, "lrd": 0.999}), elbo)
for step in range(20 if "--smoke" in sys.argv else 2500):
    loss = svi.step(x, y)
    if step % 250 == 0:
        print(f"step {step:4d}  ELBO {-loss:8.2f}")
print({name: f"{mean:.3f} +- {guide.sd()[name]:.3f}" for name, mean in guide.mean().items()})
