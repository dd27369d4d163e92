"""NUTS of NumPyro on the models of ``structured_models.py``; run by the environment of ``jax_process.py``.

``python structured_nuts.py FAMILY DATA.npz ANSWER.npz`` writes means, sds, effective draws and split R-hat of every
latent, and the seconds of the processor until the summary was printed.
"""

import sys
import time
from collections.abc import Callable

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import numpy as jnp
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS
from numpyro.infer.reparam import LocScaleReparam

Array = jax.Array


def normal(y: Array) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(2.0))
    s = numpyro.sample("s", dist.HalfNormal(2.0))
    with numpyro.plate("group", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta[..., None], s).to_event(1), obs=y)


def radon(county: Array, floor: Array, y: Array) -> None:
    mu_a = numpyro.sample("mu_a", dist.Normal(0.0, 5.0))
    mu_b = numpyro.sample("mu_b", dist.Normal(0.0, 5.0))
    sa, sb, s = (numpyro.sample(name, dist.HalfNormal(1.0)) for name in ("sa", "sb", "s"))
    with (
        numpyro.handlers.reparam(config={"b": LocScaleReparam(0.0)}),  # few houses have a floor of 1
        numpyro.plate("county_plate", 85),
    ):
        a = numpyro.sample("a", dist.Normal(mu_a, sa))
        b = numpyro.sample("b", dist.Normal(mu_b, sb))
    with numpyro.plate("house", len(y)):
        numpyro.sample("y", dist.Normal(a[county] + b[county] * floor, s), obs=y)


def slopes(x: Array, y: Array) -> None:
    mu = numpyro.sample("mu", dist.Normal(jnp.zeros(3), 2.0).to_event(1))
    tau = numpyro.sample("tau", dist.HalfNormal(jnp.ones(3)).to_event(1))
    lower = numpyro.sample("L", dist.LKJCholesky(3, 2.0))
    with numpyro.plate("group", len(y)):
        raw = numpyro.sample("raw", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    z = numpyro.deterministic("z", mu + raw @ (tau[:, None] * lower).T)
    with numpyro.plate("group", len(y)):
        numpyro.sample("y", dist.Bernoulli(logits=(x * z[:, None]).sum(-1)).to_event(1), obs=y)


def poisson(y: Array) -> None:
    shape = numpyro.sample("shape", dist.HalfNormal(5.0))
    rate = numpyro.sample("rate", dist.HalfNormal(5.0))
    with numpyro.plate("group", len(y)):
        lam = numpyro.sample("lam", dist.Gamma(shape, rate))
        numpyro.sample("y", dist.Poisson(lam[..., None]).to_event(1), obs=y)


def irt(y: Array) -> None:
    sb = numpyro.sample("sb", dist.HalfNormal(1.0))
    sa = numpyro.sample("sa", dist.HalfNormal(1.0))
    with numpyro.plate("item", y.shape[1]):
        b = numpyro.sample("b", dist.Normal(0.0, sb))
        log_a = numpyro.sample("log_a", dist.Normal(0.0, sa))
    with numpyro.plate("person", len(y)):
        t = numpyro.sample("t", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Bernoulli(logits=jnp.exp(log_a) * (t[:, None] - b)).to_event(1), obs=y)


def volatility(y: Array) -> None:
    keep = 2 * numpyro.sample("phi", dist.Beta(20.0, 1.5)) - 1
    m = numpyro.sample("m", dist.Normal(0.0, 3.0))
    s = numpyro.sample("s", dist.HalfNormal(0.5))
    with numpyro.plate("time", len(y)):
        raw = numpyro.sample("raw", dist.Normal(0.0, 1.0))

    def step(off: Array, shock: Array) -> tuple[Array, Array]:
        off = keep * off + s * shock
        return off, off

    first = s / jnp.sqrt(1 - keep**2) * raw[0]
    _, rest = jax.lax.scan(step, first, raw[1:])
    h = numpyro.deterministic("h", m + jnp.concatenate([first[None], rest]))
    numpyro.sample("y", dist.Normal(0.0, jnp.exp(h / 2)).to_event(1), obs=y)


FAMILIES: dict[str, Callable] = {
    function.__name__: function for function in (normal, radon, slopes, poisson, irt, volatility)
}


def main() -> None:
    """Runs one model."""
    family, data, answer = sys.argv[1:]
    numpyro.enable_x64()
    chains = MCMC(
        NUTS(FAMILIES[family]),
        num_warmup=1000,
        num_samples=1000,
        num_chains=4,
        chain_method="sequential",
        progress_bar=False,
    )
    with np.load(data) as arrays:
        chains.run(jax.random.PRNGKey(0), **{name: jnp.asarray(arrays[name]) for name in arrays})
    chains.print_summary()
    divergences = int(chains.get_extra_fields()["diverging"].sum())
    np.savez(answer, processor=time.process_time(), divergences=divergences, **read(chains))


def read(chains: MCMC) -> dict[str, np.ndarray]:
    """Mean, sd, effective draws and split R-hat of every site, under names as ``mean:theta``."""
    found = {}
    for name, draws in chains.get_samples(group_by_chain=True).items():
        array = np.asarray(draws)
        found[f"mean:{name}"] = array.mean((0, 1))
        found[f"sd:{name}"] = array.std((0, 1))
        found[f"ess:{name}"] = effective_sample_size(array)
        found[f"rhat:{name}"] = split_gelman_rubin(array)
    return found


if __name__ == "__main__":
    main()
