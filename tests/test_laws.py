"""Every law on every case of the registry, and each case under torch.compile; by default a selection of both."""

import pytest
import torch
from torch.distributions import biject_to
from torch.testing import assert_close

from cases import BIJECTORS, CASES, COMPILED_CORE, CONDITIONAL, CORE, CROSSED, ELEMENTARY, TRACER_WARNING, params
from pyroflows import bijectors, flows, transforms
from pyroflows.laws import BIJECTOR_LAWS, LAWS, check_bijector_law, check_law

AUTOREGRESSIVE = {
    name for name, make in CASES.items() if any(isinstance(m, transforms.Autoregressive) for m in make().modules())
}
# Compiling unrolls a loop over dimensions, with roots in it.
UNROLLED = {n for n in CASES if n in AUTOREGRESSIVE or n.startswith(("block_autoregressive", "bnaf", "naf", "unaf"))}
PAIRS = [(name, law) for name in CASES for law in LAWS if law != "triangular" or name in AUTOREGRESSIVE]
COMPILED = [(name, "forward") for name in CASES] + [(n, "inverse") for n in CASES if n not in UNROLLED]
# Laws of modules, of copies, of what torch does to them and of scores, which hang on the classes of the parts.
OF_CLASSES = {"carried_score", "never_stale", "copies", "dtypes", "devices", "functorch"}


def rare(name: str, law: str) -> bool:
    """Whether a law is tested on a case by `make test-slow` only, as of what is tested with a context before that."""
    return name not in CORE and (name in CROSSED or law in OF_CLASSES or f"{name}_context" in CASES)


@pytest.mark.parametrize(("name", "law"), params(PAIRS, slow=rare))
def test_law(name: str, law: str) -> None:
    check_law(law, CASES[name]())


@pytest.mark.parametrize("law", BIJECTOR_LAWS)
@pytest.mark.parametrize("name", BIJECTORS | ELEMENTARY)
def test_bijector_law(name: str, law: str) -> None:
    check_bijector_law(law, (BIJECTORS | ELEMENTARY)[name]())


@pytest.mark.filterwarnings(TRACER_WARNING)
@pytest.mark.parametrize(("name", "way"), params(COMPILED, slow=lambda *pair: pair not in COMPILED_CORE))
def test_compiles_without_graph_break(name: str, way: str) -> None:
    transform = CASES[name]() if way == "forward" else CASES[name]().inv
    x = biject_to(transform.domain)(torch.randn(4, transform.input_dim))
    context = torch.randn(4, transform.context_dim) if transform.context_dim else None
    expected = transform.call_and_ladj(x, context)
    torch.compiler.reset()
    compiled = torch.compile(transform.call_and_ladj, backend="eager", fullgraph=True)
    assert_close(compiled(x, context), expected)


@pytest.mark.filterwarnings(TRACER_WARNING)
@pytest.mark.parametrize("name", ["coupling_2d", "autoregressive_1d"])
def test_compiles_where_a_default_device_is_set(name: str) -> None:
    transform = CASES[name]()
    x = torch.randn(4, transform.input_dim)
    torch.compiler.reset()
    with torch.device("cpu"):  # Dynamo then traces into methods of Tensor that are written in Python
        compiled = torch.compile(transform.call_and_ladj, backend="eager", fullgraph=True)
        assert_close(compiled(x), transform.call_and_ladj(x))


@pytest.mark.filterwarnings(TRACER_WARNING)
def test_a_compiled_flow_sees_new_parameters() -> None:
    flow, x = flows.nsf(3, layers=2, hidden_dims=(8,)), torch.randn(5, 3)
    compiled = torch.compile(flow.inv.call_and_ladj, backend="eager", fullgraph=True)
    assert_close(compiled(x)[0], x)
    for parameter in flow.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    assert_close(compiled(x), flow.inv.call_and_ladj(x.clone()))
    assert not torch.equal(compiled(x)[0], x)


def test_the_registry_holds_every_bijector_transform_and_recipe() -> None:
    for names in (CASES, CORE, {name for name, _ in COMPILED_CORE}):
        built = {type(part).__name__ for name in names for part in CASES[name]().modules()}
        assert set(transforms.__all__) - {"FlowTransform", "Foreign", "from_zuko"} <= built  # see test_foreign.py
    assert set(bijectors.__all__) - {"Bijector"} <= {
        type(make()).__name__ for make in (BIJECTORS | ELEMENTARY).values()
    }
    recipes = set(flows.__all__)
    # The one is random in training, so that no law holds; the other is realnvp_tails, of more layers.
    assert recipes - {"copula_with_dropout", "with_tails"} <= set(CONDITIONAL)
