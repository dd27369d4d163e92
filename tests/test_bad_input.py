"""Models that no fit can get right as they stand: a clear message for each, nothing silent, and what is there stays."""

import math
import warnings
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroflows import AutoFlow, FlowDistribution, Posterior, fit, flows, log_joint
from pyroflows.distributions import MixtureBase
from pyroflows.fitting.faults import faults, misses
from pyroflows.infer import Gaussian, ReverseKL, best_start, improper
from pyroflows.model import LogJoint

SMALL = partial(flows.realnvp, layers=2, hidden_dims=(8,))
quick = partial(fit, flow=flows.full_rank, steps=100, progress=False, compile=False)
pytestmark = pytest.mark.usefixtures("no_search")
FLAT = dist.ImproperUniform(dist.constraints.real, (), ())


def normal(factor: Callable[[Tensor], Tensor], prior: dist.Distribution | None = None) -> Callable[[], None]:
    """A model of one latent ``x`` and a factor ``f``."""

    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0) if prior is None else prior)
        pyro.factor("f", factor(x))

    return model


NOT_FINITE = {
    "nan gradient in a dropped branch": (
        lambda x: torch.where(x > 0, x.sqrt(), torch.zeros_like(x)),
        r"site 'f' is finite but its gradient is not at \d+ of 256 draws, as at x = -.*torch.where drops a branch",
    ),
    "nan": (lambda x: torch.where(x > 0, math.nan, 0.0), r"site 'f' is nan at \d+ of 4000 draws, as at x = \d"),
    "boundary": (lambda x: torch.where(x > 1, -math.inf, 0.0), r"'f' is -inf at \d+ of 4000 .* x = \d.*: a flow has"),
    "infinite": (lambda x: torch.where(x > 2, math.inf, 0.0), r"site 'f' is inf at \d+ of 4000 draws, as at x = 2"),
}


@pytest.mark.usefixtures("whole_affine_stage")  # which finds them
@pytest.mark.parametrize("name", NOT_FINITE)
def test_a_density_that_is_not_finite(name: str) -> None:
    factor, message = NOT_FINITE[name]
    with pytest.raises(FloatingPointError, match=message):
        quick(normal(factor))


@pytest.mark.filterwarnings("ignore:fit. broken off")  # or not, as chance will have it
@pytest.mark.parametrize(("factor", "sign"), [(lambda x: (x + 1).log(), "-"), (lambda x: (3 - x).sqrt().sqrt(), "")])
def test_a_boundary_that_few_draws_cross_is_told(factor: Callable, sign: str) -> None:
    message = (
        rf"do not trust.* The log density of the site 'f' is nan at \d+ of 4000 draws, as at x = {sign}\d.*declare"
    )
    with pytest.warns(UserWarning, match=message):
        quick(normal(factor))


UNSEEN = {
    "detach": lambda x: -(x.detach() - 1).square(),
    "floor": lambda x: -2 * x.floor().abs(),
    "step": lambda x: torch.where(x > 0, 0.0, -2.0),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_changes_that_no_gradient_sees(name: str) -> None:
    message = r"The gradient of the site 'f' misses .* nats .*: values pass through .detach\(\), .item\(\), rounding or"
    with pytest.warns(UserWarning, match=message):
        posterior = quick(normal(UNSEEN[name]))
    assert posterior.diagnostics.grade == "usable with weights"  # these set it right


def test_a_density_without_any_gradient() -> None:
    with pytest.raises(ValueError, match="expected a log density with a gradient, got one that no latent moves"):
        quick(normal(lambda x: -x.detach().square(), FLAT))


def test_a_kink_is_no_fault() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        posterior = fit(normal(lambda x: -x.abs()), flow=SMALL, progress=False, steps=150, compile=False)
    assert posterior.khat < 0.7


def test_a_chasm_between_two_modes_is_no_fault() -> None:
    density = log_joint(normal(lambda x: torch.logaddexp(-2 * (x - 2) ** 2, -2 * (x + 2) ** 2)))
    base = MixtureBase(torch.zeros(2), torch.tensor([[-2.0], [2.0]]), torch.full((2, 1, 1), 0.5))
    guide = AutoFlow(density.model, flows.full_rank, base=base, init_scale=1.0).setup()
    start = Gaussian(torch.zeros(1), torch.eye(1))
    assert {faults(density, guide, start) for _ in range(20)} == {""}


SMOOTH = {
    "kink": lambda x: -x.abs(),
    "steep": lambda x: -2 * torch.sigmoid(1e6 * x),
    "chasm": lambda x: torch.logaddexp(-2e4 * (x - 2) ** 2, -2e4 * (x + 2) ** 2),
    "pole": lambda x: x.abs().log(),
    "hole": lambda x: -x.abs().log() - 1 / x**2 / 2,
    "waves": lambda x: 3 * torch.sin(500 * x),
    "root": lambda x: -3 * x.abs().sqrt(),
    "large": lambda x: -1e12 * (1 + 1e-12 * x**2),
}
CUT = UNSEEN | {
    "half of it": lambda x: -(x - 1) * (x.detach() - 1),
    "straight through": lambda x: -2 * (x.round() + x - x.detach()) ** 2,
    "table": lambda x: torch.tensor([0.0, 1.0, 3.0, 1.0, 0.0])[(x.detach().clamp(-2, 2) + 2).long()],
    "scale": lambda x: dist.Normal(x, x.detach().exp()).log_prob(torch.tensor(2.0)),
}


@pytest.mark.parametrize("name", [*SMOOTH, *CUT])
def test_a3_only_gradients_that_miss_are_accused(name: str) -> None:
    density = LogJoint(normal((SMOOTH | CUT)[name]), (), {}, dtype=torch.float64)
    assert bool(list(misses(density, 1.2 * torch.randn(100, 1).double()))) == (name in CUT)


def test_a3_a_smooth_mixture_between_modes() -> None:
    y = torch.tensor([-4.2, -3.9, 3.7, 4.4, 4.0, -4.1])

    def mixture() -> None:
        at = pyro.sample("at", dist.Normal(torch.zeros(2), 5.0).to_event(1))
        parts = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(at, 0.1))
        pyro.sample("y", parts.expand([6]).to_event(1), obs=y)

    ends = torch.tensor([[-4.0, 4.0], [4.0, -4.0]]).double().repeat(9, 1)
    density = LogJoint(mixture, (), {}, dtype=torch.float64)
    assert not list(misses(density, ends + 0.1 * torch.randn(18, 2).double()))


def flat() -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("free", FLAT)


def flat_and_positive() -> None:
    pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("free", dist.ImproperUniform(dist.constraints.positive, (2,), ()))


def collinear() -> None:
    a, b = pyro.sample("a", FLAT), pyro.sample("b", FLAT)
    pyro.sample("y", dist.Normal(a + b, 1.0), obs=torch.tensor(0.3))


def rising() -> None:
    pyro.factor("f", pyro.sample("x", FLAT))


IMPROPER = {
    flat: r"along [+-] 'free' \(in",
    flat_and_positive: r"along \+ 'free'\[\d\] \(in",
    collinear: r"along (- 'a' \+ 'b'|\+ 'a' - 'b') \(in",
    rising: r"along \+ 'x' \(in",
}


@pytest.mark.parametrize("model", IMPROPER)
def test_an_improper_posterior(model: Callable) -> None:
    message = f"expected a proper posterior. .* improper: the ELBO grows without bound, .*{IMPROPER[model]}"
    with pytest.raises(ValueError, match=message + ".*give it a proper prior"):
        quick(model)


def hierarchy() -> None:
    """With the prior 1 / tau, which holds infinite mass at zero."""
    tau = pyro.sample("tau", dist.ImproperUniform(dist.constraints.positive, (), ()))
    pyro.factor("prior", -tau.log())
    with pyro.plate("j", 4):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(tau * effect, 1.0), obs=torch.tensor([0.1, 0.5, -0.3, 1.0]))


def test_an_improper_posterior_that_creeps_away_is_told_of_at_the_end() -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        quick(hierarchy)
    assert any("seems improper" in str(w.message) and "along - 'tau'" in str(w.message) for w in found)


@pytest.mark.parametrize("sd", [1e-3, 1.0, 1e3])
def test_proper_densities_have_an_end(sd: float) -> None:
    """A start far too narrow or too wide is no reason to call a density improper, heavy tails are none either."""
    around = Gaussian(torch.zeros(2).double(), torch.eye(2).double())
    for density in (dist.Normal(0.0, sd), dist.Cauchy(0.0, sd), dist.StudentT(1.0, 3 * sd, sd)):
        assert improper(lambda z, density=density: density.log_prob(z).sum(-1), around) is None
    assert improper(lambda z: -0.9 * z[:, 0].square().add(1).log() / 2 - z[:, 1].square(), around) is not None


FAR = 1e15
SEPARATED = torch.tensor([[1.0, 2.0, -1.0], [1.0, -1.0, 2.0]]).double()
PROPER = {  # log densities that have an end, if far out or beside what grows
    "far": lambda z: -z.square().sum(-1) / 2 - (z[:, 0] - FAR).square() / 2,
    "far and oblique": lambda z: -z.square().sum(-1) / 2 - (z.sum(-1) - FAR).square() / 2,
    "wide": lambda z: -z[:, 1].square() / 2 - (z[:, 0] / 1e12).square() / 2,
    "wide and oblique": lambda z: -(z.sum(-1) - 0.3).square() / 2 - (z / 1e12).square().sum(-1) / 2,
    "spike": lambda z: -(z[:, 1] * (-z[:, 0]).exp()).square() / 2 - z[:, 0] + z[:, 0] - z[:, 0].exp() / 2,
}
ENDLESS = {
    "flat": lambda z: -z[:, 0].square() / 2,
    "oblique": lambda z: -((1.7 * z[:, 0] + 0.3 * z[:, 1] - 0.3) / 0.04).square() / 2,
    "rising": lambda z: z[:, 0] - z[:, 1].square(),
    "separated": lambda z: (z @ SEPARATED).sigmoid().log().sum(-1),
    "heavy": lambda z: -0.9 * z[:, 0].square().add(1).log() / 2 - z[:, 1].square(),
}


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e4])
@pytest.mark.parametrize("name", [*PROPER, *ENDLESS])
def test_a2_only_mass_that_has_no_end_is_improper(name: str, scale: float) -> None:
    around = Gaussian(torch.zeros(2).double(), scale * torch.tensor([[1.0, 0.0], [0.3, 0.9]]).double())
    assert (improper((PROPER | ENDLESS)[name], around) is not None) == (name in ENDLESS)


def test_a2_centred_effects_are_not_improper() -> None:
    """All effects at their prior's mean, as its scale goes to zero, are a spike without mass."""
    y = torch.tensor([1.0, 2.0, 4.0, 3.0, 2.5, 0.5])

    def model() -> None:
        tau = pyro.sample("tau", dist.HalfNormal(1.0).expand([2]).to_event(1))
        with pyro.plate("row", len(y)):
            e = pyro.sample("e", dist.MultivariateNormal(torch.zeros(2), scale_tril=tau.diag_embed()))
            pyro.sample("y", dist.Normal(e.sum(-1), 1.0), obs=y)

    density = LogJoint(model, (), {}, dtype=torch.float64)
    size = density.size
    for wide in (1.0, 10.0):
        scales = torch.cat([torch.full((2,), wide), torch.ones(size - 2)]).double()
        assert improper(density, Gaussian(torch.zeros(size).double(), scales.diag())) is None


def test_a2_a_wide_prior_is_fitted() -> None:
    def wide() -> None:
        pyro.sample("x", dist.Normal(0.0, 1e12))

    assert quick(wide, steps=100).diagnostics.grade == "good"


def delta() -> None:
    loc = pyro.sample("loc", dist.Delta(torch.ones(2)).to_event(1))
    pyro.sample("x", dist.Normal(loc.sum(), 1.0))


def test_a_constant_latent() -> None:
    with pytest.raises(ValueError, match=r"expected latents that vary, got the site 'loc' of a Delta.*deterministic"):
        quick(delta)


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_a_latent_too_narrow_for_its_dtype() -> None:
    with pytest.raises(ValueError, match=r"got nan at the site 'f'.*scales for numbers too small for their dtype"):
        quick(lambda: pyro.sample("f", dist.Normal(0.0, 1e-30)))


def test_latents_of_which_the_data_say_nothing_keep_their_prior() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("narrow", dist.Normal(3.0, 1e-6))
        pyro.sample("idle", dist.Gamma(20.0, 2.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(1.0))

    posterior = fit(model, flow=SMALL, steps=150, progress=False, compile=False)
    assert posterior.diagnostics.grade == "good"
    assert posterior.draws["idle"].mean().item() == pytest.approx(10.0, rel=0.02)
    assert posterior.draws["idle"].std().item() == pytest.approx(5**0.5, rel=0.05)
    assert posterior.draws["narrow"].double().std().item() == pytest.approx(1e-6, rel=0.2)  # float32 near 3


def test_discrete_latents() -> None:
    def mixture() -> None:
        k = pyro.sample("k", dist.Categorical(torch.ones(3)))
        pyro.sample("x", dist.Normal(k.float(), 1.0))

    with pytest.raises(ValueError, match="expected continuous latents, got the discrete site 'k': sum it out"):
        quick(mixture)


class Changing:
    """A model that reads what is not among its arguments."""

    def __init__(self, size: Callable[[int], int], extra: Callable[[int], bool] = lambda run: False) -> None:
        self.size, self.extra, self.runs = size, extra, 0

    def __call__(self) -> None:
        self.runs += 1
        pyro.sample("x", dist.Normal(torch.zeros(self.size(self.runs)), 1.0).to_event(1))
        if self.extra(self.runs):
            pyro.sample("late", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize("first", [2, 5, 8])
def test_latents_that_change_from_run_to_run(first: int) -> None:
    grows = Changing(lambda run: 2 + (run >= first))
    with pytest.raises(ValueError, match=r"same latents in every run, got the site 'x' of shape \(3,\) after \(2,\)"):
        quick(grows, compile=False)
    more = Changing(lambda run: 2, lambda run: run >= first)
    with pytest.raises(ValueError, match="expected the same latents in every run, got 'late' in some runs only"):
        quick(more, compile=False)


def test_control_flow_by_chance() -> None:
    with pytest.raises(ValueError, match="expected the same latents in every run, got 'late' in some runs only"):
        quick(Changing(lambda run: 2, lambda run: torch.rand(()).item() < 0.2))


def test_latents_by_the_size_of_the_data() -> None:
    def model(y: Tensor) -> None:
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(pyro.sample("x", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    guide = AutoFlow(model, flows.full_rank).setup(torch.zeros(2))
    with pytest.raises(ValueError, match=r"guide of the model's latents \{'x': \(3,\)\}, got one of \{'x': \(2,\)\}"):
        quick(model, torch.zeros(3), guide=guide)


class Breaks(ReverseKL):
    """An objective that fails after some steps: by Ctrl-C, or by values that are not finite."""

    def __init__(self, after: int, by_hand: bool) -> None:
        super().__init__()
        object.__setattr__(self, "breaks", (after, by_hand, []))

    def __call__(self, posterior: FlowDistribution, log_density: Callable, num: int) -> Tensor:
        after, by_hand, calls = self.breaks
        calls.append(0)
        if by_hand and len(calls) > after:
            raise KeyboardInterrupt
        found = super().__call__(posterior, log_density, num)
        return found * math.nan if len(calls) > after else found


@pytest.mark.parametrize("by_hand", [True, False])
def test_what_a_broken_fit_has_learnt_is_kept(by_hand: bool) -> None:
    message = "broken off after 60 steps .*interrupted" if by_hand else "broken off after 110 steps .*got 50 bad steps"
    with pytest.warns(UserWarning, match=message):
        posterior = quick(normal(lambda x: -x.square() / 2), objective=Breaks(60, by_hand), steps=150)
    assert isinstance(posterior, Posterior)
    assert posterior.diagnostics.grade == "good"
    assert posterior.draws["x"].std().item() == pytest.approx(0.5**0.5, rel=0.05)
    assert posterior.history.stopped in (
        "interrupted",
        "expected finite ELBO and gradients, got 50 bad steps of 110 (the last ELBO was nan)",
    )


@pytest.mark.parametrize(("shape", "rate"), [(3.0, 2.0), (30.0, 1.0)])
def test_one_dimension(shape: float, rate: float) -> None:
    counts = torch.tensor([2.0, 5.0, 3.0, 4.0])

    def model() -> None:
        rate_ = pyro.sample("rate", dist.Gamma(shape, rate))
        with pyro.plate("row", 4):
            pyro.sample("y", dist.Poisson(rate_), obs=counts)

    posterior, truth = fit(model, progress=False, compile=False), dist.Gamma(shape + counts.sum(), rate + 4)
    assert posterior.diagnostics.grade == "good"
    assert posterior.khat < 0.7 or posterior.diagnostics.log_weight_sd < 0.05
    assert posterior.draws["rate"].mean().item() == pytest.approx(truth.mean.item(), abs=0.06 * truth.stddev.item())
    assert posterior.draws["rate"].std().item() == pytest.approx(truth.stddev.item(), rel=0.06)


def test_where_nothing_is_finite_the_start_says_so() -> None:
    around = Gaussian(torch.zeros(1).double(), torch.eye(1).double())
    with pytest.raises(FloatingPointError, match=r"no start has a finite ELBO.*init_loc_fn and a smaller init_scale"):
        best_start(lambda z: math.nan * z.sum(-1), around)


@pytest.mark.slow
def test_five_hundred_dimensions() -> None:
    scale, y = torch.logspace(-1.0, 1.0, 500), torch.randn(500)

    def model() -> None:
        with pyro.plate("row", 500):
            pyro.sample("y", dist.Normal(pyro.sample("x", dist.Normal(0.0, scale)), 1.0), obs=y)

    posterior = fit(model, steps=300, progress=False)
    assert posterior.diagnostics.grade == "good"
    shrunk = scale.square() / (1 + scale.square())
    draws = posterior.draws["x"]
    assert ((draws.mean(0) - shrunk * y) / shrunk.sqrt()).abs().max() < 0.1
    assert (draws.std(0) / shrunk.sqrt() - 1).abs().max() < 0.1
