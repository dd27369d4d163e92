"""The registry that the laws are tested on, name -> constructor, and the flows of other tests."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import constraints

from pyroflows import flows
from pyroflows import transforms as tr
from pyroflows.bijectors import (
    ELU,
    Affine,
    Bend,
    Bernstein,
    Bijector,
    Chain,
    CircularShift,
    Cos,
    CubicSpline,
    DistributionCDF,
    Exp,
    ExponentialCDF,
    Inline,
    LeakyReLU,
    LinearRationalSpline,
    LinearSpline,
    MixtureCDF,
    MonotoneNet,
    NormalCDF,
    Power,
    QuadraticSpline,
    RQSpline,
    Shift,
    Sigmoid,
    SinhArcsinh,
    Softplus,
    Stretched,
    SumOfSquares,
    Tails,
    Tanh,
)
from pyroflows.flows.field import following

SMALL = {"hidden_dims": (8, 8)}
# Dimension 3 comes first, 0 and 4 hear it, 1 hears these two, 2 hears nothing.
GRAPH = torch.tensor([[j in {0: {3}, 1: {0, 4}, 4: {3}}.get(i, set()) for j in range(5)] for i in range(5)])
# The tracer of torch 2.13 warns about code of its own.
TRACER_WARNING = "ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning"

# A bijector gets its line here; it is tested alone, and in every structure with and without context.
BIJECTORS: dict[str, Callable[[], Bijector]] = {
    "affine": Affine,
    "affine_tight": partial(Affine, bound=0.5),
    "shift": Shift,
    "leaky_relu": LeakyReLU,
    "bend": Bend,
    "bend_aside": partial(Bend, center=-1.0, bound=0.5, level=1.5),
    "tails": Tails,
    "spline": RQSpline,
    "spline_2_bins": partial(RQSpline, bins=2, bound=1.5),
    "spline_16_bins": partial(RQSpline, bins=16, bound=8.0, min_bin=0.01),
    "spline_linear_tails": partial(RQSpline, bins=4, tails="linear"),
    "spline_circular": partial(RQSpline, bins=4, bound=math.pi, tails="circular"),
    "linear_spline": LinearSpline,
    "quadratic_spline": partial(QuadraticSpline, bins=5),
    "quadratic_spline_tails": partial(QuadraticSpline, bins=3, tails="linear"),
    "quadratic_spline_circular": partial(QuadraticSpline, bins=3, tails="circular"),
    "cubic_spline": CubicSpline,
    "cubic_spline_tails": partial(CubicSpline, bins=4, tails="linear"),
    "linear_rational_spline": LinearRationalSpline,
    "linear_rational_spline_circular": partial(LinearRationalSpline, bins=3, tails="circular"),
    "circular_shift": CircularShift,
    "stretched": partial(Stretched, RQSpline(bins=3)),
    "sinh_arcsinh": SinhArcsinh,
    "inline": lambda: Inline(_softly, param_shapes=((),)),
    "sum_of_squares": SumOfSquares,
    "sum_of_squares_line": partial(SumOfSquares, degree=1, bound=2.0),
    "bernstein": Bernstein,
    "bernstein_square": partial(Bernstein, degree=2, bound=1.0),
    "monotone_net": MonotoneNet,
    "logistic_mixture": MixtureCDF,
    "normal_mixture": partial(MixtureCDF, components=3, kernel="normal", bound=4.0),
    "chain": lambda: Chain((Bend(), MixtureCDF(2), Affine())),
}
# Those without parameters, from one domain onto another.
ELEMENTARY: dict[str, Callable[[], Bijector]] = {
    "exp": Exp,
    "log": lambda: Exp().inv,
    "softplus": Softplus,
    "sigmoid": Sigmoid,
    "tanh": Tanh,
    "square": Power,
    "reciprocal": partial(Power, -1.0),
    "elu": ELU,
    "elu_wide": partial(ELU, 1.5),
    "cos": Cos,
    "normal_cdf": NormalCDF,
    "probit": lambda: NormalCDF().inv,
    "exponential_cdf": partial(ExponentialCDF, 0.5),
    "gumbel_cdf": lambda: DistributionCDF(dist.Gumbel(0.5, 2.0)),
    "gamma_cdf": lambda: DistributionCDF(dist.Gamma(2.0, 0.5)),
    "inline_cubic": lambda: Inline(_cubic),
    "inline_exp": lambda: Inline(torch.exp, torch.log, torch.clone, codomain=constraints.positive),
}


def _cubic(x: torch.Tensor) -> torch.Tensor:
    return x + x**3


def _softly(x: torch.Tensor, bend: torch.Tensor) -> torch.Tensor:
    return x + 0.9 * bend.tanh() * x.sin()


def moved(flow: tr.FlowTransform, by: float = 0.3) -> tr.FlowTransform:
    """Moves every parameter at random, in place: away from the identity that flows start at."""
    for parameter in flow.parameters():
        parameter.data.add_(by * torch.randn_like(parameter))
    return flow


def reversible(parts: Iterable[tr.FlowTransform]) -> tr.Compose:
    """The same parts, without a graph of each."""
    return tr.Compose(parts, reversible=True)


def _build(structure: str, bijector: str, context_dim: int) -> tr.FlowTransform:
    return STRUCTURES[structure](3, (BIJECTORS | ELEMENTARY)[bijector](), context_dim, **SMALL)


def nested_gaussian(dim: int, few: list[int]) -> tr.NestedGaussian:
    """One with numbers of its own, which are buffers."""
    made = tr.NestedGaussian(dim, few)
    for name in ("root", "centre_root"):
        getattr(made, name).add_((0.3 * torch.randn_like(getattr(made, name))).tril(-1))
    for name in ("loc", "centre", "slopes", "sizes"):
        getattr(made, name).add_(0.3 * torch.randn_like(getattr(made, name)))
    made.shears.add_((0.2 * torch.randn_like(made.shears)).tril(-1))
    return made


def batch_norm(dim: int) -> tr.BatchNorm:
    """One that has seen data."""
    made = tr.BatchNorm(dim)
    made.inv(3 + 2 * torch.randn(50, dim))
    return made


def fixed(dim: int) -> list[tr.FlowTransform]:
    """Linear maps that take no context, as they are after training."""
    turn = torch.eye(dim).roll(1, 0) * (-1.0) ** torch.arange(dim)  # to the digit in double precision, too
    return [tr.Orthogonal(dim, turn), tr.ActNorm(dim).eval(), batch_norm(dim).eval()]


MIXING = (tr.LU, tr.QR, tr.SVD, tr.Householder, tr.Rotation, tr.MatrixExponential)
STRUCTURES = {"elementwise": tr.Elementwise, "coupling": tr.Coupling, "autoregressive": tr.Autoregressive}

# What takes a context: tested without and with one.
CONDITIONAL: dict[str, Callable[[int], tr.FlowTransform]] = {
    "affine": lambda c: tr.Affine(3, c, **SMALL),
    "affine_1d": lambda c: tr.Affine(1, c, loc=2.0, scale=0.1, hidden_dims=()),
    "affine_initial": lambda c: tr.Affine(2, c, loc=torch.arange(2.0), scale=torch.tensor([9.0, 0.1])),
    "lower_triangular": lambda c: tr.LowerTriangular(4, c, **SMALL),
    "lower_triangular_1d": lambda c: tr.LowerTriangular(1, c, scale=3.0, **SMALL),
    "lower_triangular_low_rank": lambda c: tr.LowerTriangular(5, c, rank=2, loc=-1.0, scale=0.5, **SMALL),
    "lower_triangular_high_rank": lambda c: tr.LowerTriangular(2, c, rank=3, **SMALL),
    "lu": lambda c: tr.LU(4, c, **SMALL),
    "qr": lambda c: tr.QR(3, c, **SMALL),
    "svd": lambda c: tr.SVD(3, c, **SMALL),
    "svd_low_rank": lambda c: tr.SVD(5, c, reflections=2, **SMALL),
    "householder": lambda c: tr.Householder(4, c, **SMALL),
    "householder_1d": lambda c: tr.Compose([tr.Householder(1), tr.LU(1, c, **SMALL)]),
    "rotation": lambda c: tr.Rotation(3, c, **SMALL),
    "matrix_exponential": lambda c: tr.MatrixExponential(3, c, **SMALL),
    "mixing": lambda c: tr.Compose([*(make(3, c, hidden_dims=(4,)) for make in MIXING), *fixed(3)]),
    "elementwise_1d": lambda c: tr.Elementwise(1, RQSpline(), c, **SMALL),
    "elementwise_shared": lambda c: tr.Elementwise(3, LeakyReLU(), c, shared=True, **SMALL),
    "elementwise_elu": lambda c: tr.Elementwise(2, RQSpline(), c, activation=nn.ELU, hidden_dims=(5,)),
    "coupling_2d": lambda c: tr.Coupling(2, Affine(), c, **SMALL),
    "coupling_alternating": lambda c: tr.Coupling(5, RQSpline(), c, mask="alternating", **SMALL),
    "coupling_one_kept": lambda c: tr.Coupling(4, RQSpline(), c, mask=[False, False, True, False], **SMALL),
    "coupling_one_moved": lambda c: tr.Coupling(4, Affine(), c, mask=torch.arange(4) != 2, **SMALL),
    "coupling_net": lambda c: tr.Coupling(3, RQSpline(), c, net=nn.Linear),
    "autoregressive_1d": lambda c: tr.Autoregressive(1, RQSpline(), c, **SMALL),
    "autoregressive_inverse": lambda c: tr.Autoregressive(3, Affine(), c, fast="inverse", **SMALL),
    "autoregressive_spline_inverse": lambda c: tr.Autoregressive(3, RQSpline(), c, fast="inverse", **SMALL),
    "autoregressive_reversed": lambda c: tr.Autoregressive(3, RQSpline(), c, order="reversed", **SMALL),
    "autoregressive_random": lambda c: tr.Autoregressive(5, Affine(), c, order="random", **SMALL),
    "autoregressive_order": lambda c: tr.Autoregressive(4, RQSpline(), c, order=[2, 0, 3, 1], **SMALL),
    "autoregressive_narrow": lambda c: tr.Autoregressive(6, Affine(), c, hidden_dims=(3,)),
    "autoregressive_elu": lambda c: tr.Autoregressive(3, RQSpline(), c, activation=nn.ELU, **SMALL),
    "autoregressive_deep": lambda c: tr.Autoregressive(3, Affine(), c, hidden_dims=(7, 4, 9)),
    "autoregressive_passes": lambda c: tr.Autoregressive(5, RQSpline(), c, passes=2, order="random", **SMALL),
    "autoregressive_three_passes": lambda c: tr.Autoregressive(5, Affine(), c, passes=3, fast="inverse", **SMALL),
    "autoregressive_graph": lambda c: tr.Autoregressive(5, Affine(), c, adjacency=GRAPH, hidden_dims=(9, 5)),
    "autoregressive_residual": lambda c: tr.Autoregressive(4, Affine(), c, residual=True, hidden_dims=(7, 7, 5, 5)),
    "planar_map": lambda c: tr.Planar(3, c, **SMALL),
    "planar_map_1d": lambda c: tr.Planar(1, c, **SMALL),
    "radial_map": lambda c: tr.Radial(3, c, **SMALL),
    "radial_map_1d": lambda c: tr.Radial(1, c, **SMALL),
    "sylvester_map": lambda c: tr.Sylvester(4, c, rank=3, **SMALL),
    "sylvester_map_1d": lambda c: tr.Sylvester(1, c, **SMALL),
    "sylvester_householder": lambda c: tr.Sylvester(3, c, rank=2, basis="householder", **SMALL),
    "sylvester_triangular": lambda c: tr.Sylvester(3, c, basis="triangular", **SMALL),
    "onto": lambda c: tr.Compose([tr.Affine(2, c, **SMALL), tr.Onto(constraints.interval(-1.0, 3.0), 2)]),
    "inverse": lambda c: tr.Coupling(3, RQSpline(), c, **SMALL).inv,
    "inverse_autoregressive": lambda c: tr.Autoregressive(3, Affine(), c, **SMALL).inv,
    "compose_mixed": lambda c: tr.Compose([tr.Coupling(3, Affine()), tr.Permute(3), tr.Coupling(3, RQSpline(), c)]),
    "compose_nested": lambda c: tr.Compose([flows.realnvp(3, c, layers=2, **SMALL).inv, tr.Permute(3)]),
    "compose_tied": lambda c: tr.Compose(2 * [tr.Coupling(2, Shift(), c), tr.Permute(2, "reversed")]),
    "compose_reversible": lambda c: reversible(flows.realnvp(4, c, layers=3, **SMALL)),
    "compose_reversible_nsf": lambda c: reversible(flows.nsf(3, c, layers=2, **SMALL)),
    "compose_reversible_tied": lambda c: tr.Compose(2 * [tr.Coupling(3, Affine(), c), tr.Permute(3)], reversible=True),
    "compose_reversible_nested": lambda c: reversible([tr.Permute(3), reversible(flows.nice(3, c, **SMALL)).inv]),
    "nice": lambda c: flows.nice(3, c, **SMALL),
    "nice_1d": lambda c: flows.nice(1, c, **SMALL),
    "nice_net": lambda c: flows.nice(3, c, layers=2, net=nn.Linear),
    "realnvp": lambda c: flows.realnvp(5, c, layers=4, **SMALL),
    "realnvp_1d": lambda c: flows.realnvp(1, c, **SMALL),
    "realnvp_tails": lambda c: flows.realnvp(3, c, layers=2, tails=True, **SMALL),
    "realnvp_net": lambda c: flows.realnvp(2, c, layers=3, net=nn.Linear, bound=1.0),
    "maf": lambda c: flows.maf(3, c, layers=2, **SMALL),
    "copula": lambda c: flows.copula(3, c, layers=2, **SMALL),
    "maf_1d": lambda c: flows.maf(1, c, **SMALL),
    "steady": lambda c: flows.steady(3, c),
    "steady_1d": lambda c: flows.steady(1, c),
    "iaf": lambda c: flows.iaf(4, c, layers=2, bound=5.0, **SMALL),
    "iaf_1d": lambda c: flows.iaf(1, c, **SMALL),
    "nsf": lambda c: flows.nsf(4, c, layers=2, **SMALL),
    "ncsf": lambda c: flows.ncsf(3, c, layers=2, bins=4, **SMALL),
    "ncsf_1d": lambda c: flows.ncsf(1, c, bins=4, **SMALL),
    "nsf_1d": lambda c: flows.nsf(1, c, bins=5, bound=2.0, **SMALL),
    "nsf_maf": lambda c: flows.nsf(3, c, structure="autoregressive", layers=1, **SMALL),
    "nsf_iaf": lambda c: flows.nsf(3, c, structure="autoregressive", fast="forward", layers=1, **SMALL),
    "full_rank": lambda c: flows.full_rank(3, c, **SMALL),
    "planar": lambda c: flows.planar(2, c, layers=2, fast="inverse", **SMALL),
    "radial": lambda c: flows.radial(3, c, layers=2, **SMALL),
    "sylvester": lambda c: flows.sylvester(3, c, layers=2, rank=2, **SMALL),
    "residual_map": lambda c: tr.Residual(3, c, hidden_dims=(5,)),
    "residual_map_1d": lambda c: tr.Residual(1, c, lipschitz=0.5, **SMALL),
    "residual": lambda c: flows.residual(2, c, layers=2, lipschitz=0.5, **SMALL),
    "naf": lambda c: flows.naf(3, c, layers=1, components=2, **SMALL),
    "naf_1d": lambda c: flows.naf(1, c, components=3, **SMALL),
    "sospf": lambda c: flows.sospf(3, c, layers=2, fast="forward", **SMALL),
    "bpf": lambda c: flows.bpf(3, c, layers=1, degree=5, **SMALL),
    "unaf": lambda c: flows.unaf(2, c, layers=1, width=3, **SMALL),
    "block_autoregressive": lambda c: tr.BlockAutoregressive(3, c, units=3, **SMALL),
    "block_autoregressive_1d": lambda c: tr.BlockAutoregressive(1, c, units=2, depth=1, **SMALL),
    "bnaf": lambda c: flows.bnaf(2, c, layers=1, units=2, **SMALL),
    "gaussianization": lambda c: flows.gaussianization(3, c, layers=1, components=3, **SMALL),
    "flowpp": lambda c: flows.flowpp(3, c, layers=2, components=3, **SMALL),
    "flowpp_1d": lambda c: flows.flowpp(1, c, fast="forward", components=3, **SMALL),
}

# What takes none.
CASES: dict[str, Callable[[], tr.FlowTransform]] = {
    "permute_1d": lambda: tr.Permute(1),
    "permute_random": lambda: tr.Permute(5),
    "permute_order": lambda: tr.Permute(3, [2, 0, 1]),
    "permute_inverse": lambda: tr.Permute(4, "random").inv,
    "orthogonal": lambda: tr.Orthogonal(3),
    "orthogonal_dct": lambda: tr.Orthogonal(4, "dct"),
    "orthogonal_haar": lambda: tr.Orthogonal(5, "haar"),
    "act_norm": lambda: tr.ActNorm(3),
    "act_norm_set": lambda: tr.ActNorm(3).eval(),
    "batch_norm": lambda: batch_norm(3).eval(),
    "conditioned": lambda: tr.Coupling(3, RQSpline(), 2, **SMALL).condition(torch.tensor([0.5, -1.0])),
    "nested_gaussian": lambda: nested_gaussian(5, [1, 3]),
    "nested_gaussian_2d": lambda: nested_gaussian(2, [1]),
    "part": lambda: tr.Part(4, flows.realnvp(2, layers=2, **SMALL), [3, 1]),
    "part_inverse": lambda: tr.Part(3, tr.LowerTriangular(2), [0, 2]).inv,
    "following": lambda: following(4, [2]),
    "compose_conditioned": lambda: tr.Compose([tr.Affine(2, 3).condition(torch.ones(3)), tr.Permute(2)]),
}
CROSSED: set[str] = set()  # tested by `make test-slow`; the two bijectors of flows stand for the others before that
for structure, bijector in product(STRUCTURES, BIJECTORS):
    name = f"{structure}_of_{bijector}"
    CONDITIONAL[name] = partial(_build, structure, bijector)
    CROSSED |= set() if bijector in ("affine", "spline") else {name, f"{name}_context"}
for bijector in ELEMENTARY:
    CASES[f"elementwise_of_{bijector}"] = partial(_build, "elementwise", bijector, 0)
    CROSSED.add(f"elementwise_of_{bijector}")
for name in ("naf_1d", "sospf", "bpf", "unaf", "bnaf", "flowpp_1d"):  # whose structure is naf's or flowpp's
    CROSSED |= {name, f"{name}_context"}
# Variants of what is tested before that in one form at least.
CROSSED |= {"svd_low_rank", "svd_low_rank_context", "householder_1d", "householder_1d_context", "mixing", "orthogonal"}
CROSSED |= {"orthogonal_dct", "ncsf", "ncsf_1d", "lu", "qr", "svd", "householder", "rotation", "matrix_exponential"}
for name, make in CONDITIONAL.items():
    CASES |= {name: partial(make, 0), f"{name}_context": partial(make, 2)}
# One of each transform and recipe, of the ways to order, mask and compose them, and of both bijectors of flows.
CORE = {
    *(
        "nested_gaussian",
        "part",
        "affine",
        "lower_triangular",
        "elementwise_of_spline",
        "coupling_of_spline",
        "autoregressive_of_affine",
    ),
    *("realnvp", "affine_context", "lower_triangular_low_rank_context", "elementwise_shared_context"),
    *("elementwise_1d_context", "coupling_of_affine_context", "coupling_of_spline_context"),
    *("coupling_net_context", "coupling_one_kept_context", "autoregressive_of_affine_context"),
    *("autoregressive_random_context", "autoregressive_spline_inverse_context", "onto_context"),
    *("inverse_context", "compose_mixed_context", "compose_nested_context", "compose_tied_context"),
    *("compose_reversible_context", "compose_reversible_tied_context"),
    *("nice_context", "realnvp_tails_context", "maf_context", "copula_context", "iaf_context"),
    *("steady_context", "nsf_context", "full_rank_context", "permute_1d", "permute_order", "permute_inverse"),
    *("ncsf_context", "elementwise_of_circular_shift", "mixing_context"),
    *("lu_context", "qr_context", "svd_context", "householder_context", "rotation_context"),
    *("matrix_exponential_context", "orthogonal_haar", "act_norm_set", "batch_norm"),
    *("conditioned", "compose_conditioned", "elementwise_of_exp", "elementwise_of_inline_context"),
    *("conditioned", "compose_conditioned"),
    *("planar_map_context", "radial_map_context", "sylvester_map_context", "sylvester_householder"),
    *("autoregressive_passes_context", "autoregressive_graph", "autoregressive_residual_context"),
    *("residual_map_context",),
    *("naf_context", "flowpp", "block_autoregressive_context"),
}
# For torch.compile, which takes a second or more: each structure, bijector of flows, net and way to compose once.
_BOTH_WAYS = {
    *("affine", "lower_triangular_low_rank_context", "elementwise_shared_context"),
    *("coupling_of_spline_context", "onto_context", "permute_order", "nested_gaussian", "part", "mixing_context"),
    "radial_map",
}
_FORWARD = {
    *("coupling_alternating_context", "coupling_net", "autoregressive_of_affine_context", "autoregressive_1d"),
    *("autoregressive_inverse_context", "compose_tied_context", "compose_reversible_tied_context"),
    *("realnvp_tails_context", "steady_context", "inverse_autoregressive", "conditioned"),
    *("block_autoregressive_context", "residual_map_context", "autoregressive_passes_context"),
    *("sylvester_map", "planar_map_context"),
}
_INVERSE = {"compose_mixed_context"}
COMPILED_CORE = {
    *((name, "forward") for name in _BOTH_WAYS | _FORWARD),
    *((name, "inverse") for name in _BOTH_WAYS | _INVERSE),
}


def params(pairs: Iterable[tuple[str, str]], slow: Callable[[str, str], bool]) -> list:
    """Pairs of a case and something else as parameters of a test, marked slow where they are."""
    return [pytest.param(*pair, marks=pytest.mark.slow if slow(*pair) else ()) for pair in pairs]


# One of each kind over four dimensions, with networks of the default size.
LAYERS: dict[str, Callable[[], tr.FlowTransform]] = {
    "affine_coupling": lambda: tr.Coupling(4, Affine()),
    "spline_coupling": lambda: tr.Coupling(4, RQSpline()),
    "affine_autoregressive": lambda: tr.Autoregressive(4, Affine()),
    "affine_autoregressive_inv": lambda: tr.Autoregressive(4, Affine()).inv,
    "spline_autoregressive": lambda: tr.Autoregressive(4, RQSpline(), fast="inverse"),
    "leaky_relu": lambda: tr.Elementwise(4, LeakyReLU()),
    "lower_triangular": lambda: tr.LowerTriangular(4, rank=2),
    "nsf": lambda: flows.nsf(4, layers=2),
}
every_layer = pytest.mark.parametrize("name", LAYERS)
D = 4


def layer(name: str) -> tr.FlowTransform:
    """One of ``LAYERS`` with random parameters."""
    return moved(LAYERS[name]())


def base() -> dist.Distribution:
    """The base of a layer."""
    return dist.Normal(torch.zeros(D), 1.0).to_event(1)


def density(flow: tr.FlowTransform) -> dist.TransformedDistribution:
    """A layer in Pyro's own distribution."""
    return dist.TransformedDistribution(base(), [flow])
