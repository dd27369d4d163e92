"""The subsampled plates of a model: rows chosen at random, or all of them in turn, and what each site then counts."""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample
from torch import Tensor

# Log densities of the same row in two batches differ by rounding alone.
TOLERANCE = 1e-4
# Rows are drawn with replacement where there are more than so many times as many.
FEW = 20


class Rows(NamedTuple):
    """Rows that are chosen for one plate.

    Args:
        index: which, of shape ``(B,)``.
        weight: how often each counts, of shape ``(B,)``; 0 for one that counts in another pass.
        once: how often sites outside of the plate count that share others with it; a scalar.
    """

    index: Tensor
    weight: Tensor
    once: Tensor


class Choice(NamedTuple):
    """Rows for all subsampled plates of a model.

    Args:
        rows: those of each plate, by name.
        prior: how often sites outside of all of these plates count; a scalar.
    """

    rows: dict[str, Rows]
    prior: Tensor


class Chosen(Messenger):
    """Gives plates the rows of a choice in the place of their own."""

    def __init__(self, choice: Choice) -> None:
        super().__init__()
        self._choice = choice

    def _pyro_sample(self, msg: Message) -> None:
        if site_is_subsample(msg) and msg["name"] in self._choice.rows:
            msg["value"], msg["done"] = self._choice.rows[msg["name"]].index, True


class Plates:
    """The subsampled plates of a model.

    Args:
        sizes: how many rows each plate has, and how many of them a run sees, by name.
        groups: plates that share a site, directly or by way of others, are in one group.
        sites: of each site inside, the plate of each batch dimension from the right, and how many dimensions an event
            has.
        device: where the indices are.
    """

    def __init__(
        self,
        sizes: dict[str, tuple[int, int]],
        groups: list[list[str]],
        sites: dict[str, tuple[dict[int, str], int]],
        device: torch.device,
    ) -> None:
        self.sizes, self.groups, self.sites, self.device = sizes, groups, sites, device

    @classmethod
    def of(cls, trace: poutine.Trace) -> "Plates | None":
        """The plates of a run of a model, None if one was made outside, so that its rows cannot be chosen."""
        sizes: dict[str, tuple[int, int]] = {}
        groups: list[list[str]] = []
        sites = {}
        for site, node in trace.nodes.items():
            frames = [f for f in node.get("cond_indep_stack") or () if f.full_size not in (None, f.size)]
            sizes |= {frame.name: (int(frame.full_size), int(frame.size)) for frame in frames}
            groups = _joined(groups, [frame.name for frame in frames])
            if frames and node["type"] == "sample" and not site_is_subsample(node):
                sites[site] = {f.dim: f.name for f in frames if f.vectorized}, node["fn"].event_dim
        if any(name not in trace.nodes or not site_is_subsample(trace.nodes[name]) for name in sizes):
            return None
        return cls(sizes, groups, sites, trace.nodes[next(iter(sizes))]["value"].device)

    def random(self) -> Choice:
        """Rows at random, each weighed so that sums are right on average."""

        def draw(size: int, count: int) -> Tensor:
            if count * FEW < size:  # hardly ever one twice, and a permutation of all takes longer than a step
                return torch.randint(size, (count,), device=self.device)
            return torch.randperm(size, device=self.device)[:count]

        return self._weighed(draw)

    def spaced(self, first: int = 0) -> Choice:
        """Rows at equal distances, the same at each call, weighed in the same way."""
        return self._weighed(
            lambda size, count: (torch.arange(count, device=self.device) * size // count + first) % size
        )

    def _weighed(self, draw: Callable[[int, int], Tensor]) -> Choice:
        one = torch.ones((), dtype=torch.float64, device=self.device)
        rows = {k: Rows(draw(size, n), one.expand(n) * size / n, one) for k, (size, n) in self.sizes.items()}
        return Choice(rows, one)

    def passes(self) -> Iterator[Choice]:
        """Choices in which together each row, and each pair of rows of crossed plates, counts once."""
        first = True
        for group in self.groups:
            for starts in product(*(self._starts(name) for name in group)):
                rows = {name: self._slice(name, 0, False) for name in self.sizes}
                rows |= {name: self._slice(name, k) for name, k in zip(group, starts, strict=True)}
                yield Choice(rows, torch.tensor(float(first), dtype=torch.float64, device=self.device))
                first = False

    @property
    def runs(self) -> int:
        """How many passes there are."""
        return sum(int(np.prod([len(self._starts(name)) for name in group])) for group in self.groups)

    def _starts(self, name: str) -> range:
        size, count = self.sizes[name]
        return range(math.ceil(size / count))

    def _slice(self, name: str, k: int, counts: bool = True) -> Rows:
        """The rows of a pass; the last ones start earlier, so that there are as many, and their first count nothing."""
        size, count = self.sizes[name]
        index = torch.arange(count, device=self.device) + min(k * count, size - count)
        weight = ((index >= k * count) & counts).double()
        return Rows(index, weight, weight.new_tensor(float(k == 0)))

    def terms(self, trace: poutine.Trace, choice: Choice) -> dict[str, Tensor]:
        """What each sample site of a run, whose log densities were computed, adds to the sum over a choice."""
        nodes = trace.nodes.items()
        return {
            name: self._weigh(node, choice)
            for name, node in nodes
            if node["type"] == "sample" and not site_is_subsample(node)
        }

    def by_row(self, node: dict) -> Tensor:
        """The log densities of a site without the weights ``size / count`` that Pyro gives to rows of these plates."""
        shares = [self.sizes[frame.name] for frame in self._frames(node)]
        return node["log_prob"] * math.prod(count / size for size, count in shares)

    def _frames(self, node: dict) -> list[CondIndepStackFrame]:
        return [frame for frame in node["cond_indep_stack"] if frame.name in self.sizes]

    def _weigh(self, node: dict, choice: Choice) -> Tensor:
        """What a site adds up to over the rows of a choice."""
        frames, weight = self._frames(node), choice.prior
        if frames:
            names = {frame.name for frame in frames}
            others = next(group for group in self.groups if names <= {*group})
            weight = math.prod((choice.rows[name].once for name in others if name not in names), start=1.0)
        for frame in frames:
            own = choice.rows[frame.name].weight
            weight = weight * (own.view(-1, *[1] * (-frame.dim - 1)) if frame.vectorized else own[frame.counter - 1])
        value = self.by_row(node)
        weight = weight.to(value)
        return torch.where(weight != 0, value * weight, 0.0).sum()

    def gather(self, parts: Iterable[tuple[Choice, dict[str, NDArray]]], values: bool = True) -> dict[str, NDArray]:
        """Arrays by site for all rows, put together from those of each pass.

        Args:
            parts: of each pass the choice, and arrays of which the last dimensions are those of the sites.
            values: whether they are values, with the dimensions of an event, or log densities.
        """
        whole: dict[str, NDArray] = {}
        for choice, arrays in parts:
            for name, array in arrays.items():
                dims, event_dim = self.sites.get(name, ({}, 0))
                if not dims:
                    whole.setdefault(name, array)
                    continue
                shape, at = [*array.shape], [slice(None)] * array.ndim
                for dim, plate in dims.items():
                    index = choice.rows[plate].index
                    place = dim - event_dim * values
                    shape[place], at[place] = self.sizes[plate][0], slice(int(index[0]), int(index[-1]) + 1)
                whole.setdefault(name, np.empty(shape, array.dtype))[tuple(at)] = array
        return whole

    def followed(self, run: Callable[[Choice], poutine.Trace]) -> bool:
        """Whether a model sees the rows that are chosen, each by itself: other rows, or another order, change no row.

        Not so where data of a batch are passed to the model, or rows that were chosen outside.

        Args:
            run: runs the model for a choice and computes log densities.
        """
        one = self.spaced()
        half = {name: (n + 1) // 2 for name, (_, n) in self.sizes.items()}
        other = {
            name: rows._replace(index=torch.cat([rows.index.flip(0)[: half[name]], new.index[half[name] :]]))
            for (name, rows), new in zip(one.rows.items(), self.spaced(first=1).rows.values(), strict=True)
        }
        before, after = (run(choice).nodes for choice in (one, one._replace(rows=other)))
        for name in before.keys() & after.keys():
            frames = [f for f in before[name].get("cond_indep_stack") or () if f.name in self.sizes and f.vectorized]
            if site_is_subsample(before[name]) or "log_prob" not in before[name]:
                continue
            old, new = before[name]["log_prob"], after[name]["log_prob"]
            for frame in frames:
                old = old.flip(frame.dim).narrow(frame.dim, 0, half[frame.name])
                new = new.narrow(frame.dim, 0, half[frame.name])
            if not torch.allclose(old, new, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
                return False
        return True


def _joined(groups: list[list[str]], names: list[str]) -> list[list[str]]:
    """The groups, with those joined that have one of these names."""
    met = [group for group in groups if {*group} & {*names}]
    apart = [group for group in groups if group not in met]
    joined = dict.fromkeys([*(name for group in met for name in group), *names])
    return [*apart, [*joined]] if joined else groups
