"""One rule: a flow takes inputs and contexts of its own dtype, and batches that broadcast; else it says what to do."""

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from cases import SMALL
from pyroflows import FlowDistribution, FlowEncoder, FlowPrior, bijectors, flows
from pyroflows.transforms import Affine, Compose, Elementwise, FlowTransform, Permute

FLOWS = {
    "elementwise": lambda context=0: Elementwise(3, bijectors.RQSpline(), context),
    "affine": lambda context=0: Affine(3, context),
    "permuted": lambda context=0: Compose([Permute(3, "reversed"), Affine(3, context), Permute(3, "reversed")]),
    "maf": lambda context=0: flows.maf(3, context, layers=1, **SMALL),
    "iaf": lambda context=0: flows.iaf(3, context, layers=1, **SMALL),
    "realnvp": lambda context=0: flows.realnvp(3, context, layers=2, **SMALL),
    "nsf": lambda context=0: flows.nsf(3, context, layers=2, **SMALL),
    "full_rank": lambda context=0: flows.full_rank(3, context),
}


@pytest.mark.parametrize("own", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FLOWS)
def test_d4_inputs_of_another_dtype(name: str, own: torch.dtype) -> None:
    flow, other = FLOWS[name]().to(own), torch.float64 if own == torch.float32 else torch.float32
    message = rf"an input of {own}, the dtype of its parameters, got {other}: convert it by .to\({own}\)"
    x = torch.zeros(5, 3, dtype=other)
    for call in (flow, flow.inv, flow.call_and_ladj, flow.inv.call_and_ladj, FlowDistribution(transform=flow).log_prob):
        with pytest.raises(TypeError, match=message):
            call(x)
        call(x.to(own))


@pytest.mark.parametrize("name", FLOWS)
def test_d4_contexts_of_another_dtype(name: str) -> None:
    flow, wrong = FLOWS[name](2), torch.zeros(5, 2, dtype=torch.float64)
    message = "a context of torch.float32, the dtype of its parameters, got torch.float64"
    with pytest.raises(TypeError, match=message):
        flow(torch.zeros(5, 3), wrong)
    with pytest.raises(TypeError, match=message):
        flow.condition(wrong)
    with pytest.raises(TypeError, match=r"an input of torch.float32.*got torch.float64"):
        flow.condition(wrong.float()).inv(torch.zeros(5, 3, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"a context that is a floating-point tensor, got torch.int64"):
        flow.condition(torch.zeros(5, 2, dtype=torch.long))


@pytest.mark.parametrize("name", FLOWS)
def test_d4_batches_that_do_not_broadcast(name: str) -> None:
    flow, context = FLOWS[name](2), torch.zeros(4, 2)
    message = r"batches broadcast, got \(7,\) for the input and \(4,\) for the context"
    for call in (flow.condition(context), flow.condition(context).inv, lambda x: flow(x, context)):
        with pytest.raises(ValueError, match=message):
            call(torch.zeros(7, 3))
        assert call(torch.zeros(7, 1, 3)).shape == (7, 4, 3)


def test_d4_distributions() -> None:
    flow = FLOWS["maf"](2)
    with pytest.raises(ValueError, match=r"a base and a context whose batches broadcast, got \(3,\) and \(4,\)"):
        FlowDistribution(dist.Normal(torch.zeros(3, 3), 1.0).to_event(1), flow.condition(torch.zeros(4, 2)))
    with pytest.raises(ValueError, match=r"a distribution and values whose batches broadcast, got \(4,\) and \(7,\)"):
        FlowDistribution(transform=FLOWS["maf"]()).expand([4]).log_prob(torch.zeros(7, 3))
    with pytest.raises(TypeError, match=r"an input of torch.float32.*got torch.float64"):
        FlowDistribution(dist.Normal(torch.zeros(3).double(), 1.0).to_event(1), FLOWS["maf"]()).rsample()


def test_d4_priors_and_encoders() -> None:
    with pytest.raises(TypeError, match=r"a context of torch.float32.*got torch.float64"):
        FlowPrior(3, context_dim=2)(torch.zeros(5, 2).double())
    encoder = FlowEncoder(nn.Linear(4, 6), 6, 3)
    with pytest.raises(TypeError, match=r"data of torch.float32, the dtype of its net, got torch.float64"):
        encoder(torch.zeros(5, 4).double())
    assert encoder.double()(torch.zeros(5, 4).double()).sample().dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_d4_without_parameters_any_dtype_will_do(dtype: torch.dtype) -> None:
    for flow in (Permute(3, "reversed"), Compose([Permute(3, "reversed"), Permute(3, "reversed")])):
        assert flow(torch.zeros(5, 3, dtype=dtype)).dtype == dtype


def test_d4_autocast_converts_by_itself() -> None:
    flow: FlowTransform = FLOWS["realnvp"](2)
    with torch.autocast("cpu", torch.bfloat16):
        assert flow(torch.zeros(5, 3).bfloat16(), torch.zeros(5, 2).bfloat16()).shape == (5, 3)


def test_d4_vmap_sees_the_message_too() -> None:
    with pytest.raises(TypeError, match=r"an input of torch.float32.*got torch.float64"):
        torch.func.vmap(FLOWS["maf"]())(torch.zeros(5, 3).double())
