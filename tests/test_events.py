"""Events that are no vectors, and domains that are not the whole space."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, Uniform, constraints
from torch.testing import assert_close

from cases import SMALL
from pyroflows import FlowDistribution, check_transform, flows
from pyroflows.bijectors import Affine
from pyroflows.guides.guarded import Guarded
from pyroflows.laws import LAWS, check_law
from pyroflows.nets import Parameters
from pyroflows.transforms import Compose, Coupling, Elementwise, FlowTransform, Onto, Permute
from pyroflows.transforms.fixed import Fixed

SHAPE = (2, 3, 3)
UNIT = constraints.independent(constraints.unit_interval, 1)


class Channels(FlowTransform):
    """Mixes the channels of an image by a triangular matrix, and moves each place."""

    def __init__(self, shape: tuple[int, int, int], context_dim: int = 0) -> None:
        super().__init__(shape, context_dim)
        size = shape[0]
        self.log_scale, self.below = nn.Parameter(torch.zeros(size)), nn.Parameter(torch.zeros(size, size))
        self.shift = Parameters(torch.zeros(size), context_dim, (8,))

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        shift = self.shift(context)[..., None, None]
        matrix = self.below.tril(-1) + self.log_scale.exp().diag()
        ladj = self.log_scale.sum() * z.shape[-1] * z.shape[-2]
        if inverse:
            z = torch.linalg.inv(matrix) @ (z - shift).flatten(-2)
            return z.unflatten(-1, self.event_shape[1:]), -ladj.expand(z.shape[:-2])
        out = (matrix @ z.flatten(-2)).unflatten(-1, self.event_shape[1:]) + shift
        return out, ladj.expand(out.shape[:-3])


class Logistic(FlowTransform):
    """The interval from 0 to 1 onto itself, by a shift of the log odds."""

    domain = codomain = UNIT

    def __init__(self, input_dim: int) -> None:
        super().__init__(input_dim)
        self.shift = nn.Parameter(torch.zeros(input_dim))

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        odds = z.logit()
        out = odds - self.shift if inverse else odds + self.shift
        ladj = out.neg().abs().neg() - 2 * torch.log1p(out.abs().neg().exp()) - (z * (1 - z)).log()
        return out.sigmoid(), ladj.sum(-1)


def image(context_dim: int = 0) -> Compose:
    return Compose([Channels(SHAPE, context_dim), Onto(constraints.interval(0.0, 255.0), SHAPE)])


SUBJECTS = {
    "image": lambda: Channels(SHAPE),
    "image_context": lambda: Channels(SHAPE, 2),
    "image_onto": lambda: image(2),
    "signal_onto": lambda: Onto(constraints.positive, (2, 5)),
    "interval": lambda: Logistic(3),
    "from_interval": lambda: Onto(constraints.unit_interval, 3).inv,
    "there_and_back": lambda: Compose([Onto(constraints.unit_interval, 3), Logistic(3)]),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", SUBJECTS)
def test_laws_of_events_and_domains(name: str, law: str) -> None:
    check_law(law, SUBJECTS[name]())


class Bent(Logistic):
    """A ladj that leaves out a part."""

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        value, ladj = super()._map(z, context, inverse)
        return value, ladj + (z * (1 - z)).log().sum(-1)


def test_a_broken_law_on_an_interval_is_found() -> None:
    with pytest.raises(AssertionError, match=r"Bent breaks the law '(round_trip|log_det)' forward"):
        check_transform(Bent(3))


@pytest.mark.parametrize("view", [lambda t: t, Fixed, Guarded, lambda t: t.inv.inv], ids=["itself", *"fgi"])
def test_views_keep_shape_and_domains(view: Callable) -> None:
    flow = view(image(2).condition(torch.zeros(4, 2)))
    assert (flow.event_shape, flow.batch_shape) == (SHAPE, (4,))
    assert flow.forward_shape(torch.Size((1, *SHAPE))) == (4, *SHAPE)
    assert repr(flow.codomain) == repr(constraints.independent(constraints.interval(0.0, 255.0), 3))
    assert repr(flow.domain) == repr(flow.inv.codomain) == repr(constraints.independent(constraints.real, 3))


def test_a_density_of_images() -> None:
    density = FlowDistribution(transform=image(2)).condition(torch.zeros(4, 2))
    x = density.rsample((5,))
    assert (x.shape, density.event_shape, density.log_prob(x.clone()).shape) == ((5, 4, *SHAPE), SHAPE, (5, 4))
    assert density.support.check(x).shape == (5, 4)
    assert density.support.check(x).all()
    assert not density.support.check(x + 255).any()
    normal = Normal(torch.zeros(SHAPE), 1.0)
    assert FlowDistribution(normal, Channels(SHAPE)).batch_shape == ()
    expected = normal.log_prob(torch.ones(SHAPE)).sum()
    assert_close(FlowDistribution(normal, Channels(SHAPE)).log_prob(torch.ones(SHAPE)), expected)


def test_supports() -> None:
    onto = Compose([flows.realnvp(2), Onto(constraints.interval(0.0, 4.0), 2)])
    inside, outside = torch.tensor([1.0, 3.0]), torch.tensor([1.0, 5.0])
    support = FlowDistribution(transform=onto).support
    assert support.check(torch.stack([inside, outside])).tolist() == [True, False]
    uniform = FlowDistribution(Uniform(-torch.ones(2), torch.ones(2)), Elementwise(2, Affine()))
    support = uniform.support
    assert support.check(torch.tensor([[0.9, -0.9], [1.1, 0.0]])).tolist() == [True, False]
    assert repr(support).startswith("Image(")
    whole = FlowDistribution(Uniform(torch.zeros(3), torch.ones(3)), Logistic(3))
    assert whole.support is UNIT
    assert_close(whole.log_prob(torch.full((3,), 0.3)), torch.tensor(0.0))


def test_a_density_on_an_interval_is_normalised() -> None:
    density = FlowDistribution(transform=Compose([Elementwise(1, Affine()), Onto(constraints.interval(-1.0, 3.0), 1)]))
    grid = torch.linspace(-1, 3, 4001)[1:-1].unsqueeze(-1)
    assert_close(density.log_prob(grid).exp().sum() * 0.001, torch.tensor(1.0), rtol=1e-3, atol=0.0)


X = torch.zeros(4, *SHAPE)
MESSAGES = {
    "event": (
        lambda: Channels(SHAPE)(torch.zeros(4, 3, 3)),
        r"Channels expected an input of shape \(..., 2, 3, 3\), got \(4, 3, 3\): the last 3 dimensions are the event",
    ),
    "too_few": (lambda: Channels(SHAPE)(torch.zeros(3)), r"expected an input of shape \(..., 2, 3, 3\), got \(3,\)"),
    "forward_shape": (lambda: Channels(SHAPE).forward_shape(X.shape[1:3]), r"a shape \(..., 2, 3, 3\), got \(2, 3\)"),
    "input_dim": (lambda: Channels(SHAPE).input_dim, r"got events of shape \(2, 3, 3\): read event_shape"),
    "sizes": (lambda: Channels((2, 0, 3)), r"expected an event_shape of whole numbers from 1 on, got \(2, 0, 3\)"),
    "no_dimensions": (lambda: Onto(constraints.positive, ()), r"an event_shape of whole numbers from 1 on, got \(\)"),
    "batches": (
        lambda: Channels(SHAPE, 2)(X, torch.zeros(3, 2)),
        r"whose batches broadcast, got \(4,\) for the input and \(3,\) for the context",
    ),
    "compose_shapes": (
        lambda: Compose([Channels(SHAPE), Permute(3)]),
        r"parts of one event_shape, got \[\(2, 3, 3\), \(3,\)\]",
    ),
    "compose_domains": (
        lambda: Compose([Onto(constraints.positive, 3), Permute(3)]),
        r"each part to end where the next begins, got Onto onto .*GreaterThan\(lower_bound=0.0\), 1\) as part 0, then "
        r"Permute of .*Real\(\), 1\): change the order, or put a map between",
    ),
    "compose_bounds": (
        lambda: Compose([Onto(constraints.interval(0.0, 2.0), 3), Logistic(3)]),
        r"upper_bound=2.0\), 1\) as part 0, then Logistic of .*upper_bound=1.0",
    ),
    "base_shape": (
        lambda: FlowDistribution(Normal(torch.zeros(3), 1.0), Channels(SHAPE)),
        r"a base over events of shape \(2, 3, 3\), got event shape \(\) .*: use .expand and .to_event\(3\)",
    ),
    "base_support": (
        lambda: FlowDistribution(Normal(torch.zeros(3), 1.0), Logistic(3)),
        r"expected a base over the transform's domain, .*Interval.*, got one over .*Real.*: take another base",
    ),
    "outside": (
        lambda: Logistic(3)(torch.tensor([[0.5, 0.5, 0.5], [0.5, 2.0, 0.5]])),
        r"Logistic expected inputs in .*Interval.*, got 1 of 2 that are not: look at their bounds",
    ),
    "outside_codomain": (lambda: Onto(constraints.positive, 2).inv(-torch.ones(2)), r"got 1 of 1 that are not"),
    "onto_boolean": (
        lambda: Onto(constraints.boolean, 2),
        r"a constraint that torch's biject_to knows, .* got Boolean",
    ),
    "onto_simplex": (
        lambda: Onto(constraints.simplex, 2),
        r"that keeps shapes, got Simplex\(\), whose bijection makes \(3,\) of \(2,\)",
    ),
    "recipe": (
        lambda: flows.build.build(lambda d: Channels(SHAPE), 3),
        r"expected a flow with input_dim=3 and context_dim=0, got input_dim=2, 3, 3",
    ),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_messages(case: str) -> None:
    call, message = MESSAGES[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_coupling_beside_a_bounded_end_trains() -> None:
    flow = Compose([Coupling(2, Affine(), **SMALL), Onto(constraints.positive, 2)])
    density = FlowDistribution(transform=flow)
    data = torch.rand(50, 2) + 0.5
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = -density.log_prob(data).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
