"""Flows without a context beside conditional ones in Pyro's classes."""

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.conditional import ConditionalComposeTransformModule

from pyroflows import FlowDistribution, flows


def base() -> dist.Distribution:
    return dist.Normal(torch.zeros(2), 1.0).to_event(1)


@pytest.mark.parametrize("batch", [(), (4,), (3, 1)])
@pytest.mark.parametrize("inverse", [False, True])
def test_f2_an_unconditional_flow_beside_a_conditional_one(batch: tuple, inverse: bool) -> None:
    first, second = flows.realnvp(2, layers=2), flows.realnvp(2, 3, layers=2)
    parts = [first.inv, second] if inverse else [first, second]
    context = torch.rand(*batch, 3, requires_grad=True)
    torch.nn.init.normal_(next(p for name, p in second.named_parameters() if name.endswith("weight")))
    density = dist.ConditionalTransformedDistribution(base(), parts).condition(context)
    value = density.rsample((5,))
    assert value.shape == (5, *batch, 2)
    density.log_prob(value.detach()).sum().backward()
    assert context.grad is not None
    assert any(p.grad is not None for p in first.parameters())


def test_f2_in_a_conditional_compose() -> None:
    parts = [flows.realnvp(2, layers=2), flows.realnvp(2, 3, layers=2)]
    made = ConditionalComposeTransformModule(parts).condition(torch.rand(4, 3))
    assert made(torch.randn(4, 2)).shape == (4, 2)


def test_f2_who_conditions_a_wholly_unconditional_flow_is_told() -> None:
    with pytest.raises(ValueError, match="expected no context, got one: build it with context_dim > 0"):
        FlowDistribution(transform=flows.realnvp(2, layers=2)).condition(torch.rand(3))
    with pytest.raises(ValueError, match=r"expected a context of shape \(..., 3\), got none"):
        flows.realnvp(2, 3, layers=2).condition(None)


def test_f3_what_code_for_transformed_distributions_reads() -> None:
    flow = flows.realnvp(2, layers=2)
    torch.nn.init.normal_(next(flow.parameters()))
    density, value = FlowDistribution(transform=flow), torch.randn(5, 2)
    same = dist.TransformedDistribution(density.base_dist, density.transforms)
    torch.testing.assert_close(same.log_prob(value), density.log_prob(value))
    for name in ("mean", "variance"):
        with pytest.raises(NotImplementedError, match=f"no {name} in closed form: take draws"):
            getattr(density, name)
