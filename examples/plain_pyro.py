"""AutoFlow in a hand-written SVI loop: a drop-in for AutoNormal in plain Pyro.

python examples/plain_pyro.py [--smoke]
"""

import sys

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch import Tensor

from pyroflows import AutoFlow


def model(x: Tensor, y: Tensor | None = None) -> None:
    """Linear regression with unknown noise."""
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    intercept = pyro.sample("intercept", dist.Normal(0.0, 10.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x + intercept, noise), obs=y)


pyro.set_rng_seed(0)
torch.set_num_threads(1)
x = torch.linspace(-1.0, 1.0, 20)
y = 2.0 * x - 1.0 + 0.3 * torch.randn(20)

guide = AutoFlow(model)
svi = SVI(
    model,
    guide,
    pyro.optim.ClippedAdam({"lr": 3e-3, "lrd": 0.999}),
    Trace_ELBO(num_particles=32, vectorize_particles=True),
)
for step in range(20 if "--smoke" in sys.argv else 2500):
    loss = svi.step(x, y)
    if step % 100 == 0:
        print(f"step {step:4d}  ELBO {-loss:8.2f}")

print("mean", {name: round(value.item(), 3) for name, value in guide.mean().items()})
print("sd  ", {name: round(value.item(), 3) for name, value in guide.sd().items()})
at_one = Predictive(model, guide=guide, num_samples=1000)(torch.ones(1))["y"]
print(f"y at x=1: {at_one.mean():.2f} +- {at_one.std():.2f}")
