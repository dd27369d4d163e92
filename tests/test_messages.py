"""Every error of transforms, recipes and distributions: what was expected, and what came."""

from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch

from pyroflows import flows
from pyroflows import transforms as tr
from pyroflows.bijectors import Affine, Bend, LeakyReLU, Tails
from pyroflows.distributions import FlowDistribution

PLAIN, DEAF, NAN = (
    tr.Affine(3),
    tr.Compose([tr.Permute(3), tr.Affine(3)]),
    torch.tensor([1.0, torch.nan, 2.0]),
)
HEARING = tr.Compose([tr.Permute(3), tr.Affine(3, context_dim=2)])
ONE, TWO, THREE, FOUR = torch.tensor(1.0), torch.ones(2), torch.ones(3), torch.ones(5, 4)

WRONG_INPUTS = {
    "too_wide": (
        PLAIN,
        FOUR,
        None,
        ValueError,
        r"an input of shape \(..., 3\), got \(5, 4\): the last dimension",
    ),
    "too_narrow": (HEARING, TWO, TWO, ValueError, r"expected an input of shape \(..., 3\), got \(2,\)"),
    "number": (DEAF, ONE, None, ValueError, r"expected an input of shape \(..., 3\), got \(\)"),
    "integers": (
        PLAIN,
        THREE.int(),
        None,
        TypeError,
        "an input .* floating-point tensor, got torch.int32: convert",
    ),
    "list": (
        DEAF,
        [1.0, 2.0],
        None,
        TypeError,
        "expected an input .* floating-point tensor, got list: convert",
    ),
    "nan": (PLAIN, NAN, None, ValueError, "expected numbers, got NaN in 1 of 3 places: drop or impute them"),
    "no_context": (
        HEARING,
        THREE,
        None,
        ValueError,
        r"expected a context of shape \(..., 2\), got none: pass it",
    ),
    "context": (DEAF, THREE, TWO, ValueError, "expected no context, got one: build it with context_dim > 0"),
    "context_too_wide": (
        HEARING,
        THREE,
        FOUR,
        ValueError,
        r"expected a context of shape \(..., 2\), got \(5, 4\)",
    ),
    "context_number": (HEARING, THREE, ONE, ValueError, r"expected a context of shape \(..., 2\), got \(\)"),
    "context_list": (
        HEARING,
        THREE,
        [0.0],
        TypeError,
        "expected a context .* floating-point tensor, got list",
    ),
    "context_integers": (
        HEARING,
        THREE,
        TWO.int(),
        TypeError,
        "a context .* tensor, got torch.int32: convert",
    ),
}


@pytest.mark.parametrize("way", ["call", "call_and_ladj", "inv", "condition"])
@pytest.mark.parametrize("name", WRONG_INPUTS)
def test_wrong_inputs(name: str, way: str) -> None:
    transform, x, context, error, message = WRONG_INPUTS[name]
    ways = {
        "call": lambda: transform(x, context),
        "call_and_ladj": lambda: transform.call_and_ladj(x, context),
        "inv": lambda: transform.inv(x, context),
        "condition": lambda: transform.condition(context)(x),
    }
    if way == "condition" and context is None and transform.context_dim == 0:
        assert transform.condition(None) is transform
    if way == "condition" and context is not None and transform.context_dim == 0:  # as Pyro's classes need it
        assert transform.condition(context) is transform
        return
    with pytest.raises(error, match=message):
        ways[way]()


def test_messages_start_with_the_name_of_the_transform() -> None:
    for transform in (PLAIN, DEAF, tr.Elementwise(3, Affine())):
        with pytest.raises(ValueError, match=f"^{type(transform).__name__} expected an input"):
            transform(FOUR)


def test_nan_passes_where_validation_is_off() -> None:
    with dist.validation_enabled(False):
        assert PLAIN(NAN).isnan().tolist() == [False, True, False]


def test_forward_shape_refuses_what_does_not_fit() -> None:
    for shape in ((), (5, 4)):
        with pytest.raises(ValueError, match=r"Affine expected a shape \(..., 3\), got \("):
            PLAIN.forward_shape(torch.Size(shape))


CONSTRUCTORS: dict[str, tuple[Callable, str]] = {
    "input_dim": (
        lambda: tr.Permute(0),
        "Permute expected whole numbers input_dim >= 1 and context_dim >= 0, got input_dim=0",
    ),
    "input_dim_recipe": (lambda: flows.nsf(-1), "an order expected whole numbers input_dim >= 1 .* got input_dim=-1"),
    "input_dim_fraction": (lambda: flows.maf(2.5), "expected whole numbers .* got input_dim=2.5"),
    "context_dim_fraction": (
        lambda: flows.nsf(3, 1.5),
        "expected whole numbers .* got input_dim=3 and context_dim=1.5",
    ),
    "bound_affine": (lambda: flows.realnvp(3, bound=-1.0), r"a bound above 0, got Affine\(bound=-1.0\)"),
    "bound_bend": (lambda: Bend(bound=1.0), r"a bound above 0 and below 1, got Bend\(center=0.0, bound=1.0, level"),
    "bound_tails": (lambda: Tails(bound=0.0), r"a bound above 0, got Tails\(bound=0.0\)"),
    "bound_slope": (lambda: LeakyReLU(bound=0.0), r"a bound above 0, got LeakyReLU\(bound=0.0\)"),
    "bends": (lambda: flows.realnvp(3, bends=-1), "bends to be a whole number from 0 on, got -1"),
    "context_dim": (lambda: tr.Affine(2, -1), "Affine expected .* got input_dim=2 and context_dim=-1"),
    "scale": (
        lambda: tr.Affine(2, scale=0.0),
        r"Affine expected a scale between exp\(-20\) and exp\(20\), got \[0.0, 0.0\]",
    ),
    "loc": (lambda: tr.Affine(2, loc=THREE), r"Affine expected loc .* of shape \(2,\), got \(3,\)"),
    "scales": (lambda: tr.Affine(2, scale=THREE), r"Affine expected scale .* of shape \(2,\), got \(3,\)"),
    "diagonal": (
        lambda: tr.LowerTriangular(2, scale=-TWO),
        r"LowerTriangular expected a scale between .*, got \[-1.0, -1.0\]",
    ),
    "rank": (lambda: tr.LowerTriangular(2, rank=-1), "LowerTriangular expected rank >= 0, got -1"),
    "fast": (
        lambda: tr.Autoregressive(2, Affine(), fast="both"),
        "expected fast='forward' or 'inverse', got 'both'",
    ),
    "order_name": (lambda: tr.Permute(2, "up"), r"an order that is 'natural', .* of range\(2\), got 'up'"),
    "order": (
        lambda: tr.Autoregressive(2, Affine(), order=[1, 1]),
        r"or a permutation of range\(2\), got \[1, 1\]",
    ),
    "order_size": (lambda: tr.Permute(2, [0, 1, 2]), r"or a permutation of range\(2\), got \[0, 1, 2\]"),
    "mask_name": (
        lambda: tr.Coupling(2, Affine(), mask="odd"),
        r"mask out of \['halves', 'alternating'\] .* got 'odd'",
    ),
    "mask_size": (
        lambda: tr.Coupling(2, Affine(), mask=[True]),
        r"a mask of 2 booleans, got \(1,\) of torch.bool",
    ),
    "mask_type": (
        lambda: tr.Coupling(2, Affine(), mask=[0, 1]),
        r"a mask of 2 booleans, got \(2,\) of torch.int64",
    ),
    "mask_none": (
        lambda: tr.Coupling(2, Affine(), mask=TWO < 0),
        r"keeps some .* moves some, got \[False, False\]",
    ),
    "mask_all": (
        lambda: tr.Coupling(2, Affine(), mask=TWO > 0),
        r"keeps some .* moves some, got \[True, True\]",
    ),
    "mask_1d": (lambda: tr.Coupling(1, Affine()), r"got \[False\]: with input_dim=1 use Elementwise"),
    "compose_none": (lambda: tr.Compose([]), "Compose expected at least one transform, got none"),
    "compose_sizes": (lambda: tr.Compose([PLAIN, tr.Permute(2)]), r"parts of one input_dim, got \[3, 2\]"),
    "compose_contexts": (
        lambda: tr.Compose([HEARING, tr.Affine(3, 1)]),
        r"one context_dim \(or 0\), got \[2, 1\]",
    ),
    "compose_reversible": (
        lambda: tr.Compose([PLAIN, tr.Autoregressive(3, Affine())], reversible=True),
        r"reversible=True, got \['Autoregressive'\] that are slow one way: use couplings, or",
    ),
    "nice": (lambda: flows.nice(3, layers=1), "expected layers >= 2, got 1: one coupling leaves half"),
    "realnvp": (lambda: flows.realnvp(3, layers=1), "expected layers >= 2, got 1"),
    "nsf": (lambda: flows.nsf(3, layers=1), "expected layers >= 2, got 1"),
    "maf": (lambda: flows.maf(3, layers=0), "expected layers >= 1, got 0"),
    "iaf": (lambda: flows.iaf(3, layers=0), "expected layers >= 1, got 0"),
    "nsf_structure": (
        lambda: flows.nsf(3, structure="other"),
        "expected structure='coupling' or .*, got 'other'",
    ),
    "nsf_structure_1d": (
        lambda: flows.nsf(1, structure="other"),
        "expected structure='coupling' or .*, got 'other'",
    ),
    "nsf_fast": (
        lambda: flows.nsf(3, structure="autoregressive", fast="no"),
        "expected fast='forward' or 'inverse'",
    ),
    "base_size": (
        lambda: FlowDistribution(dist.Normal(TWO, 1.0), PLAIN),
        r"vectors of size 3, .* batch shape \(2,\)",
    ),
    "base_scalar": (
        lambda: FlowDistribution(dist.Normal(0.0, 1.0), PLAIN),
        r"got event shape \(\) .* use .expand",
    ),
    "cdf": (
        lambda: FlowDistribution(transform=PLAIN).cdf(THREE),
        "cdf expected one dimension .* got input_dim=3",
    ),
    "icdf": (
        lambda: FlowDistribution(transform=PLAIN).icdf(ONE),
        "icdf expected one dimension .* got input_dim=3",
    ),
    "sample": (
        lambda: FlowDistribution(transform=HEARING).sample(),
        r"a context of shape \(..., 2\), got none",
    ),
    "log_prob": (lambda: FlowDistribution(transform=HEARING).log_prob(THREE), r"shape \(..., 2\), got none"),
    "whiten_context": (
        lambda: tr.LowerTriangular(2, 1).whiten_(),
        "expected context_dim=0 and rank=0, got 1 and 0",
    ),
    "whiten_rank": (
        lambda: tr.LowerTriangular(2, rank=1).whiten_(),
        "expected context_dim=0 and rank=0, got 0 and 1",
    ),
}


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_wrong_arguments(name: str) -> None:
    call, message = CONSTRUCTORS[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_parts_that_are_no_transforms() -> None:
    with pytest.raises(TypeError, match="Compose expected parts that are FlowTransforms, got Normal: wrap it by"):
        tr.Compose([dist.Normal(0.0, 1.0)])
    with pytest.raises(TypeError, match="FlowDistribution expected a FlowTransform, got NoneType"):
        FlowDistribution(dist.Normal(torch.zeros(3), 1.0).to_event(1))
