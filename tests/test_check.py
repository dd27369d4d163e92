"""The laws catch what breaks them: one faulty transform or bijector for each law."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pyroflows import check_bijector, check_transform
from pyroflows.bijectors import Affine, Bijector
from pyroflows.flows import nsf
from pyroflows.laws import BIJECTOR_LAWS, LAWS, check_law
from pyroflows.maths import soft_clip
from pyroflows.transforms import Autoregressive, FlowTransform

Pair = tuple[Tensor, Tensor]


class Scale(FlowTransform):
    """A sound transform, ``y = exp(log_scale) x``; each class below breaks one thing."""

    def __init__(self, context_dim: int = 0) -> None:
        super().__init__(2, context_dim)
        self.log_scale = nn.Parameter(torch.zeros(2))

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> Pair:
        log_scale = -self.log_scale if inverse else self.log_scale
        return z * log_scale.exp(), log_scale.sum().expand(z.shape[:-1])


class Loose(Scale):
    def __init__(self) -> None:
        super().__init__()
        self.ones = torch.ones(2)


class OneWay(Scale):
    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> Pair:
        value, ladj = super()._map(z, context, inverse)
        return value + 1, ladj


class WrongSign(Scale):
    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> Pair:
        value, ladj = super()._map(z, context, inverse)
        return value, -ladj


class WrongScore(Scale):
    def _map_and_score(self, x: Tensor, context: Tensor | None, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value, ladj, _ = super()._map_and_score(x, context, score)
        return value, ladj, score


class Disordered(Autoregressive):
    def __init__(self) -> None:
        super().__init__(2, Affine())

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> Pair:
        value, ladj = super()._map(z.flip(-1) if inverse else z, context, inverse)
        return value if inverse else value.flip(-1), ladj


class Flat(Scale):
    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> Pair:
        return super()._map(z.flatten(0, -2) if z.dim() > 2 else z, context, inverse)


class Deaf(Scale):
    def __init__(self) -> None:
        super().__init__(context_dim=3)

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> Pair:
        return super()._map(z + 0 * context[..., :1], context, inverse)


class Forgetful(Scale):
    def _run(self, z: Tensor, context: Tensor | None, inverse: bool, keep: bool = False) -> Pair:
        return self._map(z, context, inverse)


class Detached(Scale):
    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> Pair:
        log_scale = -self.log_scale.detach() if inverse else self.log_scale.detach()
        return z * log_scale.exp(), log_scale.sum().expand(z.shape[:-1])


class Stale(Scale):
    """Remembers by a parameter's version, which neither ``.data`` nor a fused optimizer raises."""

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> Pair:
        key = self.log_scale._version
        if getattr(self, "key", None) != key:
            self.key, self.known = key, self.log_scale.tolist()
        old = self.log_scale + (self.log_scale.new_tensor(self.known) - self.log_scale).detach()
        old = -old if inverse else old
        return z * old.exp(), old.sum().expand(z.shape[:-1])


class Hoarding(Scale):
    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> Pair:
        self.seen = [z.detach()]
        return super()._map(z, context, inverse)


class Doubling(Scale):
    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> Pair:
        return super()._map(z.double(), context, inverse)


class OnCPU(Scale):
    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> Pair:
        return super()._map(z * torch.ones(2, device="cpu"), context, inverse)


class InPlace(Scale):
    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> Pair:
        value, ladj = super()._map(z, context, inverse)
        out = torch.empty(z.shape, dtype=z.dtype, device=z.device)
        out[...] = value
        return out, ladj


FAULTY = {
    "registration": Loose,
    "round_trip": OneWay,
    "log_det": WrongSign,
    "carried_score": WrongScore,
    "triangular": Disordered,
    "shapes": Flat,
    "conditioning": Deaf,
    "one_pass": Forgetful,
    "gradients": Detached,
    "never_stale": Stale,
    "copies": Hoarding,
    "dtypes": Doubling,
    "devices": OnCPU,
    "functorch": InPlace,
}


@pytest.mark.parametrize("law", LAWS)
def test_each_law_of_transforms_catches_its_fault(law: str) -> None:
    with pytest.raises(AssertionError, match=f"^{FAULTY[law].__name__} breaks the law '{law}' forward: ."):
        check_transform(FAULTY[law]())


def test_a_sound_transform_passes() -> None:
    check_transform(Scale())  # so that what is found in its kin above is their own fault


def test_the_message_says_what_was_expected_and_what_came() -> None:
    message = r"tensors that are neither parameters nor buffers: expected \[\], got \['.ones'\]"
    with pytest.raises(AssertionError, match=message):
        check_law("registration", Loose())
    with pytest.raises(AssertionError, match=r"ladj: Tensor-likes are not close"):
        check_law("log_det", WrongSign())


def test_check_leaves_the_transform_and_the_generator_as_they_are() -> None:
    flow = nsf(2, context_dim=3, layers=2, hidden_dims=(8,))
    before, generator = copy.deepcopy(flow.state_dict()), torch.get_rng_state()
    check_transform(flow, torch.randn(2, 1, 3))
    assert all(p.grad is None for p in flow.parameters())
    assert_close(flow.state_dict(), before, rtol=0, atol=0)
    assert not torch.equal(torch.get_rng_state(), generator)  # by the context drawn above, and only so
    torch.set_rng_state(generator)
    torch.randn(2, 1, 3)
    generator = torch.get_rng_state()
    check_transform(flow)
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_given_context_is_used() -> None:
    class Positive(Scale):
        def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> Pair:
            if not (context > 0).all():
                raise RuntimeError("a context below zero")
            value, ladj = super()._map(z, context, inverse)
            return value, ladj

    check_law("round_trip", Positive(context_dim=1), torch.tensor([2.0]))
    with pytest.raises(AssertionError, match="a context below zero"):
        check_law("round_trip", Positive(context_dim=1))


@dataclass(frozen=True)
class Slope(Bijector):
    """A sound bijector, ``y = exp(s) x``; each class below breaks one thing."""

    param_shapes = ((),)

    def forward(self, x: Tensor, log_slope: Tensor) -> Pair:
        log_slope = soft_clip(log_slope, 5.0)
        return x * log_slope.exp(), log_slope

    def inverse(self, y: Tensor, log_slope: Tensor) -> Pair:
        return self.forward(y, -log_slope)


class Mixing(Slope):
    def forward(self, x: Tensor, log_slope: Tensor) -> Pair:
        return super().forward(x, log_slope.mean())


class WrongLadj(Slope):
    def forward(self, x: Tensor, log_slope: Tensor) -> Pair:
        value, ladj = super().forward(x, log_slope)
        return value, -ladj


class Moving(Slope):
    def forward(self, x: Tensor, log_slope: Tensor) -> Pair:
        value, ladj = super().forward(x, log_slope)
        return value + 1, ladj


class Unbounded(Slope):
    def forward(self, x: Tensor, log_slope: Tensor) -> Pair:
        return x * log_slope.exp(), log_slope


class Folding(Slope):
    def forward(self, x: Tensor, log_slope: Tensor) -> Pair:
        value, ladj = super().forward(x, log_slope)
        return torch.where(x.abs() > 100, -value, value), ladj


class NotUndone(Slope):
    def inverse(self, y: Tensor, log_slope: Tensor) -> Pair:
        return self.forward(y, log_slope)


FAULTY_BIJECTORS = {
    "broadcasts": Mixing,
    "slope": WrongLadj,
    "identity": Moving,
    "bounded": Unbounded,
    "increasing": Folding,
    "round_trip": NotUndone,
}


@pytest.mark.parametrize("law", BIJECTOR_LAWS)
def test_each_law_of_bijectors_catches_its_fault(law: str) -> None:
    faulty = FAULTY_BIJECTORS[law]
    with pytest.raises(AssertionError, match=f"^{faulty.__name__} breaks the law '{law}' forward: ."):
        check_bijector(faulty())


def test_a_sound_bijector_passes() -> None:
    check_bijector(Slope())  # so that what is found in its kin above is their own fault
