"""Runs steps of NumPyro and flowjax on demand, in an environment of their own: see jax_process.py.

Reads lines ``NAME COUNT`` and answers each with a line of JSON once so many steps are done. What a name stands
for is built and compiled at its first line.
"""

import json
import sys
from collections.abc import Callable
from itertools import pairwise
from time import perf_counter

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from flowjax.bijections import RationalQuadraticSpline
from flowjax.distributions import Normal
from flowjax.flows import coupling_flow, masked_autoregressive_flow
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoContinuous, AutoGuide, AutoIAFNormal, AutoNormal
from paramax import NonTrainable, unwrap

Y = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SD = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
DIM, BATCH, LAYERS, WIDTH, BINS, BOUND = 16, 512, 5, 64, 8, 4.0
Steps = Callable[[int], None]


def schools(y: jax.Array, sd: jax.Array) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sd), obs=y)


def credit(x: jax.Array, y: jax.Array) -> None:
    beta = numpyro.sample("beta", dist.Normal(jnp.zeros(x.shape[-1]), 1.0).to_event(1))
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)


def credit_data() -> list[jax.Array]:
    """Data of the same size and kind as those in elbo.py, from another generator."""
    first, second, third = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(first, (1000, 25)).at[:, 0].set(1.0)
    logits = x @ (0.5 * jax.random.normal(second, (25,)))
    return [x, jax.random.bernoulli(third, jax.nn.sigmoid(logits)).astype(float)]


class Coupling(dist.transforms.Transform):
    """An affine coupling layer, which NumPyro does not have."""

    domain = codomain = dist.constraints.real_vector

    def __init__(self, weights: list, flip: bool) -> None:
        self.weights, self.flip = weights, flip

    def call_with_intermediates(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        half = x.shape[-1] // 2
        kept, moved = (x[..., half:], x[..., :half]) if self.flip else (x[..., :half], x[..., half:])
        h = kept
        for index, (weight, bias) in enumerate(self.weights):
            h = (jax.nn.silu(h) if index else h) @ weight + bias
        shift, scale = jnp.split(h, 2, -1)
        scale = jnp.tanh(scale)
        moved = moved * jnp.exp(scale) + shift
        return jnp.concatenate([moved, kept] if self.flip else [kept, moved], -1), scale.sum(-1)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.call_with_intermediates(x)[0]

    def log_abs_det_jacobian(self, x: jax.Array, y: jax.Array, intermediates: jax.Array | None = None) -> jax.Array:
        return self.call_with_intermediates(x)[1] if intermediates is None else intermediates

    def tree_flatten(self) -> tuple:
        return (self.weights,), (("weights",), {"flip": self.flip})


class AutoCoupling(AutoContinuous):
    """Six coupling layers with hidden [64, 64], written with NumPyro's means."""

    def _get_posterior(self) -> dist.Distribution:
        half, rest = self.latent_dim // 2, self.latent_dim - self.latent_dim // 2
        layers = []
        for index in range(6):
            inputs, outputs = (rest, half) if index % 2 else (half, rest)
            sizes, weights = [inputs, 64, 64, 2 * outputs], []
            for depth, shape in enumerate(pairwise(sizes)):
                weights.append(
                    (
                        numpyro.param(f"w{index}{depth}", lambda key, s=shape: jax.random.normal(key, s) * 0.1),
                        numpyro.param(f"b{index}{depth}", jnp.zeros(shape[1])),
                    )
                )
            layers.append(Coupling(weights, flip=index % 2 == 1))
        return dist.TransformedDistribution(self.get_base_dist(), layers)

    def get_base_dist(self) -> dist.Distribution:
        return dist.Normal(jnp.zeros(self.latent_dim), 1).to_event(1)


def svi(model: Callable, guide: AutoGuide, num_particles: int, data: list[jax.Array]) -> Steps:
    """Steps of NumPyro's SVI, ``jit(update)`` in a loop."""
    inference = SVI(model, guide, numpyro.optim.Adam(1e-3), Trace_ELBO(num_particles))
    update = jax.jit(inference.update)
    state = inference.init(jax.random.key(0), *data)

    def run(count: int) -> None:
        nonlocal state
        for _ in range(count):
            state, loss = update(state, *data)
        jax.block_until_ready((state, loss))

    return run


def density(make: Callable, spline: bool) -> Steps:
    """Training steps of a flow of flowjax on a fixed batch."""
    transformer = RationalQuadraticSpline(knots=BINS - 1, interval=BOUND) if spline else None  # inner knots
    flow = make(
        jax.random.key(0),
        base_dist=Normal(jnp.zeros(DIM)),
        transformer=transformer,
        flow_layers=LAYERS,
        nn_width=WIDTH,
        nn_depth=2,
    )
    x = jax.random.normal(jax.random.key(1), (BATCH, DIM))
    params, static = eqx.partition(flow, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, NonTrainable))
    optimizer = optax.adam(1e-4)
    state = optimizer.init(params)

    def loss(params: object, x: jax.Array) -> jax.Array:
        return -unwrap(eqx.combine(params, static)).log_prob(x).mean()

    @jax.jit
    def update(params: object, state: object, x: jax.Array) -> tuple:
        value, gradients = jax.value_and_grad(loss)(params, x)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, value

    def run(count: int) -> None:
        nonlocal params, state
        for _ in range(count):
            params, state, value = update(params, state, x)
        jax.block_until_ready((params, value))

    return run


def iaf() -> AutoGuide:
    return AutoIAFNormal(schools, num_flows=3, hidden_dims=[64, 64])


WORK: dict[str, Callable[[], Steps]] = {
    "AutoNormal, 16": lambda: svi(schools, AutoNormal(schools), 16, [Y, SD]),
    "3 x IAF, 1": lambda: svi(schools, iaf(), 1, [Y, SD]),
    "3 x IAF, 64": lambda: svi(schools, iaf(), 64, [Y, SD]),
    "credit, 6 x realnvp, 64": lambda: svi(credit, AutoCoupling(credit), 64, credit_data()),
    "NSF coupling": lambda: density(coupling_flow, spline=True),
    "NSF autoregressive": lambda: density(masked_autoregressive_flow, spline=True),
    "MAF": lambda: density(masked_autoregressive_flow, spline=False),
}


def main() -> None:
    ready: dict[str, Steps] = {}
    for line in sys.stdin:
        name, count = line.rsplit(maxsplit=1)
        start = perf_counter()
        if name not in ready:
            ready[name] = WORK[name]()
        ready[name](int(count))
        print(json.dumps({"name": name, "ms": 1e3 * (perf_counter() - start) / int(count)}), flush=True)


if __name__ == "__main__":
    main()
