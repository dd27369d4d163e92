"""The trainer: schedule, clipping, averages, dropped steps, and parameters as views of one vector."""

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pyroflows.training import History, Trainer


def parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(shape)) for shape in shapes]


def toward(target: float, *given: Tensor) -> Callable[[], Tensor]:
    """Log weights of four particles that are largest when every number is ``target``, where they are equal."""
    return lambda: -sum(((p - target) ** 2).sum() for p in given) * torch.tensor([0.5, 1.0, 1.0, 1.5])


def bad(value: float, *given: Tensor) -> Callable[[], Tensor]:
    return lambda: torch.stack([sum(p.sum() for p in given), torch.tensor(value)])


def test_climbs_to_the_maximum() -> None:
    given = parameters((2, 3), (4,))
    trainer = Trainer(given, lr=0.05, warmup=10)
    for _ in range(400):
        trainer.step(toward(3.0, *given))
        if trainer.safe.done == 200:
            trainer.safe.decay_over(200)
    trainer.finish()
    for p in given:
        assert_close(p.detach(), torch.full_like(p, 3.0), atol=1e-2, rtol=0.0)
    assert trainer.history.elbo[-1] > -1e-3
    assert trainer.history.elbo[-1] > trainer.history.elbo[0]


def test_records_the_elbo_and_the_spread_of_the_weights() -> None:
    given, history = parameters((2,)), History()
    weights = toward(3.0, *given)().detach()
    trainer = Trainer(given, lr=0.05, history=history)
    trainer.step(toward(3.0, *given))
    assert trainer.history is history
    assert history.elbo == pytest.approx([weights.mean().item()])
    assert history.log_weight_sd == pytest.approx([weights.std().item()])
    assert (history.bad_steps, history.stopped) == (0, "")


def test_one_particle_has_no_spread() -> None:
    given = parameters((2,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = Trainer(given, lr=0.05)
        trainer.step(lambda: -given[0].square().sum(-1, keepdim=True))
    assert math.isnan(trainer.history.log_weight_sd[0])
    assert math.isfinite(trainer.history.elbo[0])


def test_the_rate_rises_stays_and_falls() -> None:
    given, rates = parameters((2,)), []
    trainer = Trainer(given, lr=0.5, warmup=4)
    for _ in range(20):
        if trainer.safe.done == 8:
            assert trainer.safe.left == math.inf
            trainer.safe.decay_over(10)
            assert trainer.safe.left == 10
            trainer.safe.decay_over(1000)  # it is falling already
        trainer.step(toward(3.0, *given))
        rates.append(trainer.safe.rate / 0.5)
    assert rates[:8] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])
    assert rates[8:18] == pytest.approx([1 - 0.099 * k for k in range(1, 11)])
    assert rates[18:] == pytest.approx([0.01, 0.01])
    assert trainer.safe.left == -2


def test_a_gradient_is_clipped_as_a_whole() -> None:
    given = parameters((2,), (3,))
    trainer = Trainer(given, lr=0.1, clip=0.5)
    trainer.step(lambda: 1e6 * torch.stack([given[0].sum(), given[1].sum()]))
    norm = torch.cat([p.grad for p in given]).norm()
    assert_close(norm, torch.tensor(0.5), rtol=1e-4, atol=0.0)
    trainer.step(lambda: 1e-3 * torch.stack([given[0].sum(), given[1].sum()]))
    assert_close(given[0].grad, torch.full((2,), -0.5e-3))


def test_an_outlier_moves_nothing_far() -> None:
    given = parameters((2,))
    before = given[0].detach().clone()
    trainer = Trainer(given, lr=0.1, warmup=1, average=0.0)
    trainer.step(lambda: 1e15 * given[0])
    assert_close(given[0].detach(), before + 0.1)


def test_the_answer_is_an_average_of_the_last_iterates() -> None:
    given, path = parameters((1,)), []
    trainer = Trainer(given, lr=0.1, warmup=1, average=0.9)
    signs = torch.tensor([1.0, -1.0])
    for k in range(300):
        trainer.step(lambda k=k: given[0] * signs[k % 2])
        path.append(given[0].item())
    trainer.finish()
    weights = 0.9 ** torch.arange(299, -1, -1.0)
    assert given[0].item() == pytest.approx(float((weights * torch.tensor(path)).sum() / weights.sum()), abs=1e-4)
    assert min(path[-2:]) < given[0].item() < max(path[-2:])


def test_without_an_average_the_last_iterate_stays() -> None:
    given = parameters((3,))
    trainer = Trainer(given, lr=0.1, average=0.0)
    for _ in range(5):
        trainer.step(toward(3.0, *given))
    last = given[0].detach().clone()
    trainer.finish()
    assert torch.equal(given[0], last)


def test_the_average_forgets_where_it_started() -> None:
    given = [nn.Parameter(torch.tensor([1000.0]))]
    trainer = Trainer(given, lr=0.1, average=0.995)
    with torch.no_grad():
        given[0].fill_(0.0)
    for _ in range(30):
        trainer.step(lambda: 0 * given[0].expand(2))
    trainer.finish()
    assert abs(given[0].item()) < 1e-3


def test_parameters_are_views_while_training_and_free_afterwards() -> None:
    given = parameters((2, 3), (4,))
    before = [p.detach().clone() for p in given]
    trainer = Trainer(given, lr=0.1)
    assert [p.shape for p in trainer.parameters] == [(10,)]
    assert all(map(torch.equal, before, given))
    storage = trainer.parameters[0].untyped_storage().data_ptr()
    assert {p.untyped_storage().data_ptr() for p in given} == {storage}
    trainer.step(toward(3.0, *given))
    assert not any(map(torch.equal, before, given))
    trainer.finish()
    assert len({p.untyped_storage().data_ptr() for p in given} | {storage}) == 3
    assert [tuple(p.shape) for p in given] == [(2, 3), (4,)]
    assert all(isinstance(p, nn.Parameter) and p.requires_grad and p.grad is None for p in given)


def test_dtypes_are_kept_apart() -> None:
    given = [*parameters((2,)), nn.Parameter(torch.zeros(3, dtype=torch.float64))]
    trainer = Trainer(given, lr=0.1, warmup=1)
    assert {(p.dtype, p.numel()) for p in trainer.parameters} == {(torch.float32, 2), (torch.float64, 3)}
    trainer.step(toward(3.0, *given))
    trainer.finish()
    assert (given[0].dtype, given[1].dtype) == (torch.float32, torch.float64)
    assert (given[1] > 0).all()


def test_a_frozen_or_unused_parameter_stays() -> None:
    given = parameters((2,), (2,), (2,))
    given[1].requires_grad_(False)
    before = [p.detach().clone() for p in given]
    trainer = Trainer(given, lr=0.1)
    for _ in range(3):
        trainer.step(toward(3.0, given[0], given[1]))
    trainer.finish()
    assert not torch.equal(given[0], before[0])
    assert_close([p.detach() for p in given[1:]], before[1:])
    assert not given[1].requires_grad


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_bad_step_is_dropped(value: float) -> None:
    given = parameters((3,))
    trainer, twin = (Trainer(p, lr=0.1) for p in (given, [nn.Parameter(given[0].detach().clone())]))
    for _ in range(3):
        trainer.step(toward(3.0, *given))
        twin.step(toward(3.0, *twin._given))
    before, mean = given[0].detach().clone(), trainer.safe.mean[0].clone()
    trainer.step(bad(value, *given))
    assert torch.equal(given[0], before)
    assert torch.equal(trainer.safe.mean[0], mean)
    assert trainer.history.bad_steps == 1
    assert math.isnan(trainer.history.elbo[-1])
    assert math.isnan(trainer.history.log_weight_sd[-1])
    twin.safe.done += 1  # a dropped step counts in the schedule and leaves no other trace
    for _ in range(3):
        trainer.step(toward(3.0, *given))
        twin.step(toward(3.0, *twin._given))
    assert torch.equal(given[0], twin._given[0])
    assert len(trainer.history.elbo) == trainer.safe.done == 7


def test_a_gradient_that_is_not_finite_is_dropped_too() -> None:
    given = [nn.Parameter(torch.zeros(2))]
    trainer = Trainer(given, lr=0.1)
    trainer.step(lambda: given[0].sqrt())  # the value is 0, its slope infinite
    assert trainer.history.bad_steps == 1
    assert torch.equal(given[0], torch.zeros(2))


def test_fifty_bad_steps_in_a_row_are_an_error() -> None:
    given = parameters((2,))
    before = given[0].detach().clone()
    trainer = Trainer(given, lr=0.1)
    for _ in range(49):
        trainer.step(bad(math.nan, *given))
    message = r"expected finite ELBO and gradients, got 50 bad steps of 50 \(the last ELBO was nan\): try a smaller lr"
    with pytest.raises(FloatingPointError, match=message):
        trainer.step(bad(math.nan, *given))
    assert torch.equal(given[0], before)


def test_a_fifth_of_bad_steps_is_an_error_and_less_is_not() -> None:
    given = parameters((2,))

    def run(every: int, steps: int) -> Trainer:
        trainer = Trainer(given, lr=0.1)
        for k in range(steps):
            trainer.step(bad(math.inf, *given) if k % every == 0 else toward(3.0, *given))
        return trainer

    assert run(6, 600).history.bad_steps == 100
    with pytest.raises(FloatingPointError, match="got 51 bad steps of 201"):
        run(4, 600)


def test_a_window_of_the_history_holds_finite_values() -> None:
    history = History(elbo=[1.0, math.nan, 3.0, 4.0, math.nan])
    assert history.window(3) == [3.0, 4.0]
    assert history.window(100) == [1.0, 3.0, 4.0]
    assert history.window(2, end=2) == [1.0]
    assert history.window(2, end=-3) == []
