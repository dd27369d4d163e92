"""A model as terms of its globals and of each row of a plate."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroflows import log_joint
from pyroflows.model.rows import RowJoint, row_joint
from pyroflows.small_matrices import Root

GROUP = torch.tensor([2, 0, 1, 1, 2, 2, 0])


def inside(y: Tensor, size: int | None = None) -> None:
    """Data in the plate of the rows."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("group", len(y), subsample_size=size) as index:
        effect = pyro.sample("effect", dist.Normal(mean, scale))
        pyro.sample("y", dist.Normal(effect, 1.0), obs=y[index])


def beside(y: Tensor) -> None:
    """Data in a plate of their own, and two sites in each row, one of them positive."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    with pyro.plate("group", 3):
        slopes = pyro.sample("slopes", dist.MultivariateNormal(mean, torch.eye(2)))
        noise = pyro.sample("noise", dist.Gamma(2.0, slopes[..., 0].exp()))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(slopes[GROUP, 1], noise[GROUP]), obs=y)


def one_event(y: Tensor) -> None:
    """Data of all rows in one event, some left out by a mask, and a scale around them."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    with pyro.plate("group", 3):
        effect = pyro.sample("effect", dist.Normal(mean, 1.0))
    with pyro.poutine.scale(scale=0.5):
        pyro.sample("y", dist.Normal(effect[GROUP], 1.0).to_event(1), obs=y)
    pairs = dist.Normal(effect[GROUP[:6]].reshape(3, 2), 1.0).mask(torch.tensor([[True], [True], [False]]))
    pyro.sample("pairs", pairs.to_event(2), obs=y[:6].reshape(3, 2))


def nested(y: Tensor) -> None:
    """Classes in schools, with the schools' plate outside."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    with pyro.plate("school", 4, dim=-2):
        school = pyro.sample("school_effect", dist.Normal(mean, 1.0))
        with pyro.plate("class", 3, dim=-1):
            effect = pyro.sample("class_effect", dist.Normal(school, 0.5))
            pyro.sample("y", dist.Normal(effect, 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "y"),
    [
        (inside, torch.randn(6)),
        (beside, torch.randn(7)),
        (one_event, torch.randn(7)),
        (nested, torch.randn(4, 3)),
    ],
)
def test_terms_add_up_to_the_log_joint(model: Callable, y: Tensor) -> None:
    joint, density = RowJoint(model, (y,), {}, dtype=torch.float64), log_joint(model, y.double())
    g, z = (0.3 * torch.randn(5, *part.shape).double() for part in joint.start)
    terms = joint(g, z)
    whole = density(joint.structure.joined(density.space, g, z).to(density.space.start.dtype)).double()
    assert torch.allclose(terms.outer + (terms.prior + terms.rest).sum(-1), whole, atol=1e-4)
    again = joint.structure.parted(density.space, joint.structure.joined(density.space, g, z))
    assert torch.equal(again[0], g)
    assert torch.equal(again[1], z)


def test_each_datum_is_found_its_row() -> None:
    y = torch.randn(7)
    joint = RowJoint(beside, (y,), {}, dtype=torch.float64)
    g, z = (torch.randn(1, *part.shape).double() for part in joint.start)
    other = z.clone()
    other[0, 1] += 1.0
    moved = joint(g, other).rest - joint(g, z).rest
    assert moved[0, [0, 2]].abs().max() < 1e-12
    assert moved[0, 1] != 0


def test_data_in_one_event_are_taken_apart() -> None:
    y = torch.randn(7).double()
    joint = RowJoint(one_event, (y,), {}, dtype=torch.float64)
    z = torch.randn(1, 3, 1).double()
    each = dist.Normal(z[0, GROUP, 0], 1.0).log_prob(y)
    each = 0.5 * each + torch.cat([each[:4], torch.zeros(3).double()])
    assert torch.allclose(
        joint(torch.zeros(1, 1).double(), z).rest[0], torch.zeros(3).double().index_add(0, GROUP, each)
    )


def across_rows(y: Tensor) -> None:
    """Data of all rows in one event that does not come apart."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    with pyro.plate("group", 3):
        effect = pyro.sample("effect", dist.Normal(mean, 1.0))
    pyro.sample("y", dist.MultivariateNormal(effect[GROUP], 0.5 * torch.ones(7, 7) + torch.eye(7)), obs=y)


def test_the_prior_of_rows_is_read_off() -> None:
    joint = RowJoint(beside, (torch.randn(7),), {}, dtype=torch.float64)
    g = torch.tensor([[0.5, -1.0], [2.0, 0.0]]).double()
    pull, precision = joint.prior_parts(g)
    assert torch.allclose(precision, torch.diag(torch.tensor([1.0, 1.0, 0.0]).double()).expand(2, 3, 3, 3))
    assert torch.allclose(pull, torch.cat([g, torch.zeros(2, 1)], -1)[:, None].expand(2, 3, 3))


def test_rows_that_are_chosen_count_as_they_do_among_all() -> None:
    y = torch.randn(10)
    whole, some = (RowJoint(inside, (y, size), {}, dtype=torch.float64) for size in (None, 4))
    g, z = torch.randn(3, 2).double(), torch.randn(3, 10, 1).double()
    found = torch.full((3, 10), torch.nan).double()
    for part in some.passes:
        terms = some(g, z[:, part.index], part.index)
        found[:, part.index] = terms.prior + terms.rest
    terms = whole(g, z)
    assert some.follows
    assert torch.allclose(found, terms.prior + terms.rest)
    assert torch.allclose(some(g, z[:, :4], torch.arange(4)).outer, terms.outer)


def test_the_plate_that_leaves_the_fewest_numbers_is_taken_unless_one_is_named() -> None:
    y = torch.randn(4, 3)
    joint = RowJoint(nested, (y,), {})
    assert (joint.structure.plate, joint.structure.outer.size, joint.structure.width) == ("school", 1, 4)
    joint = RowJoint(nested, (y,), {}, plate="class")
    assert (joint.structure.plate, joint.structure.outer.size, joint.structure.width) == ("class", 5, 4)
    assert str(joint.structure) == (
        "globals: mean (1), school_effect (4); 5 numbers\nrows of plate 'class': 3; in each class_effect (4); 4 numbers"
    )


def chain(y: Tensor) -> None:
    """A random walk."""
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("time", len(y)):
        step = pyro.sample("step", dist.Normal(0.0, scale))
    pyro.sample("y", dist.Normal(step.cumsum(-1), 1.0).to_event(1), obs=y)


def pooled(y: Tensor) -> None:
    """Data whose scale is that of all rows."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("group", len(y)):
        effect = pyro.sample("effect", dist.Normal(mean, 1.0))
        pyro.sample("y", dist.Normal(effect, effect.std() + 1.0), obs=y)


def no_plate() -> None:
    """One latent."""
    pyro.sample("x", dist.Normal(0.0, 1.0))


def no_globals() -> None:
    """Rows that share nothing."""
    with pyro.plate("group", 5):
        pyro.sample("x", dist.Normal(0.0, 1.0))


def masked(y: Tensor) -> None:
    """Missing data in rows."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("group", len(y)):
        effect = pyro.sample("effect", dist.Normal(mean, 1.0))
        pyro.sample("y", dist.Normal(effect, 1.0), obs=y, obs_mask=torch.arange(len(y)) > 1)


def across(y: Tensor) -> None:
    """Data outside of a plate of which a run sees some rows."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("group", 8, subsample_size=4):
        effect = pyro.sample("effect", dist.Normal(mean, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(effect[torch.tensor([0, 1, 2, 3])], 1.0), obs=y)


def noisy_items(y: Tensor) -> None:
    """Persons and items whose noises are a hierarchy of another kind than a loc and a scale."""
    rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
    with pyro.plate("item", 4):
        noise = pyro.sample("noise", dist.Gamma(2.0, rate))
    with pyro.plate("person", len(y)):
        ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(ability[..., None], noise).to_event(1), obs=y)


@pytest.mark.parametrize(
    ("model", "args", "says"),
    [
        (noisy_items, (torch.ones(9, 4),), "priors of a fixed scale, got the site 'noise' whose prior other latents"),
        (chain, (torch.randn(5),), "one row of plate 'time' each, got the site 'y' with data that depend on several"),
        (
            across_rows,
            (torch.randn(7),),
            "data of several are one event, in the place of which a plate of data takes them",
        ),
        (pooled, (torch.randn(5),), "independent given the latents outside, got the site 'y' with terms that other"),
        (no_plate, (), "latents inside of a plate, got none"),
        (no_globals, (), "latents outside of the plate 'group', got none"),
        (masked, (torch.randn(5),), "latents without obs_mask in a guide of rows, got 'y_unobserved'"),
        (across, (torch.randn(4),), "data inside of the plate 'group', of which a run sees 4 of 8 rows"),
    ],
)
def test_what_cannot_be_taken_apart_is_refused(model: Callable, args: tuple, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RowJoint(model, args, {})


def test_a_plate_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="expected the name of a plate with latents inside, got 'grup': the model has"):
        RowJoint(inside, (torch.randn(5),), {}, plate="grup")


def test_wide_rows_are_refused() -> None:
    def wide() -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("group", 3):
            pyro.sample("x", dist.Normal(mean.expand(100), 1.0).to_event(1))

    with pytest.raises(ValueError, match="at most 64 latents in a row of plate 'group', got 100"):
        RowJoint(wide, (), {})


def by_lists(y: Tensor, size: int) -> None:
    """Chooses rows by Python numbers, as of data on disk, which cannot be done for several choices at once."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    with pyro.plate("group", len(y), subsample_size=size) as index:
        effect = pyro.sample("effect", dist.Normal(mean, 1.0))
        pyro.sample("y", dist.Normal(effect, 1.0), obs=torch.stack([y[row] for row in index.tolist()]))


@pytest.mark.parametrize(("model", "runs"), [(inside, 2), (by_lists, 1)])
def test_runs_of_some_rows_are_made_at_once(model: Callable, runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    y = torch.randn(11).double()
    args = {1: RowJoint(model, (y, 2), {}, dtype=torch.float64)}
    monkeypatch.setattr(row_joint, "ROWS_AT_ONCE", 2 * args[1].numbers // len(args[1].passes[0].index) * 2)
    joint = RowJoint(model, (y, 2), {}, dtype=torch.float64)
    assert {len(some.index) for some in joint.passes} == {2 * runs}
    assert torch.cat([some.index[some.weight > 0] for some in joint.passes]).sort()[0].tolist() == [*range(11)]
    g, z = torch.randn(3, joint.structure.outer.size).double(), torch.randn(3, 11, 1).double()
    whole = RowJoint(model, (y, 11), {}, dtype=torch.float64)
    for some in joint.passes:
        expected, found = whole(g, z), joint(g, z[:, some.index], some.index)
        assert torch.allclose(found.outer, expected.outer)
        for part, all_rows in ((found.prior, expected.prior), (found.rest, expected.rest)):
            assert torch.allclose(part, all_rows[:, some.index])
        for part, all_rows in zip(joint.prior_parts(g, some.index), whole.prior_parts(g), strict=True):
            assert torch.allclose(part, all_rows[:, some.index])


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
def test_roots_of_small_matrices(size: int) -> None:
    raw = torch.randn(5, size, size).double()
    matrix, x = raw @ raw.mT + torch.eye(size), torch.randn(5, size).double()
    root = Root.of(matrix)
    assert torch.allclose(root.lower @ root.lower.mT, matrix)
    assert torch.allclose(root.solve_t(root.solve(x)), torch.linalg.solve(matrix, x[..., None])[..., 0])
    assert torch.allclose(root.product_t(x), (root.lower.mT @ x[..., None])[..., 0])
    assert torch.allclose(2 * root.log_det(), matrix.logdet())


def scaled(y: Tensor) -> None:
    """Priors that say what their curvature is, and some that only seem to."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    lower = pyro.sample("lower", dist.LKJCholesky(2, 2.0))
    with pyro.plate("group", 3):
        pair = pyro.sample("pair", dist.MultivariateNormal(mean.expand(2), scale_tril=2 * lower))
        level = pyro.sample("level", dist.LogNormal(mean, 0.5))
        with pyro.poutine.scale(scale=2.0):
            twice = pyro.sample("twice", dist.Normal(mean, 1.0))
        moved = pyro.sample("moved", dist.Normal(pair[..., 0], 1.0))
        pyro.sample("y", dist.Normal(level + twice + moved, 1.0), obs=y)


def test_priors_by_formula_are_those_by_curvature() -> None:
    joint = RowJoint(scaled, (torch.randn(3),), {}, dtype=torch.float64)
    assert joint._known == {"pair", "level"}
    g = 0.3 * torch.randn(4, 2).double()
    told = joint.prior_parts(g)
    joint._known = set()
    for part, seen in zip(told, joint.prior_parts(g), strict=True):
        assert torch.allclose(part, seen)
