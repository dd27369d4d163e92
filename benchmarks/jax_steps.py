"""Runs steps of NumPyro and flowjax on demand, in an environment of their own: see jax_process.py.

Reads lines ``NAME COUNT`` and answers each with a line of JSON once so many steps are done. What a name stands
for is built and compiled at its first line.
"""

import json
import sys
from collections.abc import Callable
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
from numpyro.infer.autoguide import AutoGuide, AutoIAFNormal, AutoNormal
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


def svi(guide: AutoGuide, num_particles: int) -> Steps:
    """Steps of NumPyro's SVI, ``jit(update)`` in a loop."""
    inference = SVI(schools, guide, numpyro.optim.Adam(1e-3), Trace_ELBO(num_particles))
    update = jax.jit(inference.update)
    state = inference.init(jax.random.key(0), Y, SD)

    def run(count: int) -> None:
        nonlocal state
        for _ in range(count):
            state, loss = update(state, Y, SD)
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
    "AutoNormal 16": lambda: svi(AutoNormal(schools), 16),
    "IAF 1": lambda: svi(iaf(), 1),
    "IAF 64": lambda: svi(iaf(), 64),
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
