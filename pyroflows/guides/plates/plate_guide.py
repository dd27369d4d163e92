"""A guide of globals and rows: its parts, and what it answers once it is set up."""

import copy
import operator
from collections.abc import Callable, Iterator

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from ...arguments import check_counts
from ...distributions import FlowDistribution
from ...model.rows import RowJoint, Structure
from ...seeds import seed_of, seeded
from ...transforms import Compose
from .row_form import Given, RowForm

# Numbers of draws of all latents that are made unasked.
NUMBERS = 50_000_000
# Of the draws behind its medians, so that they are the same in every call.
SEED = seed_of("medians of a guide by plate")


class PlateGuide(AutoGuide):
    """What an :class:`~pyroflows.AutoPlateFlow` answers: its structure and its parts, draws and medians."""

    joint: RowJoint
    transform: Compose
    form: RowForm
    loc: Tensor
    root: Tensor
    path: bool

    @property
    def structure(self) -> Structure:
        """Which latents are global and which belong to rows; print it."""
        self._check_ready()
        return self.joint.structure

    @property
    def bare_model(self) -> Callable:
        """The model as it was given."""
        return self._raw[0]

    def outer_posterior(self) -> FlowDistribution:
        """The distribution of the globals, unconstrained."""
        self._check_ready()
        return FlowDistribution(None, self.transform, path=self.path)

    def given(self, joint: RowJoint, g: Tensor, index: Tensor | None = None) -> Given:
        """What the rows' conditional is given at globals ``(S, Dg)`` and, where there is a choice, rows ``(R,)``."""
        w = torch.linalg.solve_triangular(self.root, (g - self.loc).mT, upper=False).mT
        return Given(w, *joint.prior_parts(g, index), index)

    def propose(
        self, count: int, joint: RowJoint | None = None, index: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Given]:
        """Draws of globals ``(S, Dg)`` with log densities ``(S,)``, of rows ``(S, R, d)``, and what these are given.

        Args:
            count: how many, ``S``.
            joint: the model that gives the rows' priors; None for the one that the guide was set up with.
            index: which rows; None for all.
        """
        g, log_q = self.outer_posterior().rsample_and_log_prob((count,))
        given = self.given(self.joint if joint is None else joint, g, index)
        return g, log_q, self.form.at(given).draw(torch.randn_like(given.pull)), given

    @torch.no_grad()
    def sample(self, num_samples: int = 1000, *, seed: int | None = None) -> dict[str, Tensor]:
        """Draws ``num_samples`` values of every site, of shape ``(num_samples, *site.shape)``.

        Args:
            num_samples: how many.
            seed: draws from this seed and leaves torch's generator as it was; None draws from the generator.

        Raises:
            ValueError: if that is more than 50 million numbers, or the model sees some rows only.
        """
        check_counts("AutoPlateFlow", {}, num_samples=num_samples)
        if num_samples * self.structure.size > NUMBERS:
            raise ValueError(
                f"expected at most {NUMBERS:,} numbers, got {num_samples} draws of {self.structure.size:,} latents: "
                f"ask for fewer draws"
            )
        with seeded(seed, self.loc.device):
            g, _, z, _ = self.propose(num_samples)
            return self.structure.values(g, z)[0]

    def median(self, *args: object, num_samples: int = 1000, **kwargs: object) -> dict[str, Tensor]:
        """The median of every site, from samples in constrained space; model arguments are not needed."""
        return {name: value.quantile(0.5, dim=0) for name, value in self.sample(num_samples, seed=SEED).items()}

    def quantiles(
        self, quantiles: list[float] | Tensor, *args: object, num_samples: int = 1000, **kwargs: object
    ) -> dict[str, Tensor]:
        """Quantiles of every site from samples, of shape ``(len(quantiles), *site.shape)``."""
        levels = torch.as_tensor(quantiles)
        return {k: v.quantile(levels.to(v), dim=0) for k, v in self.sample(num_samples, seed=SEED).items()}

    def __deepcopy__(self, memo: dict) -> "PlateGuide":
        """A copy for the same model, which is not copied."""
        memo[id(self)] = made = type(self).__new__(type(self))
        relative = self._modules.get("relative")
        memo[id(relative)] = relative
        kept = {"_model": self._model, "_raw": self._raw, "joint": self.__dict__.get("joint"), "master": None}
        left = {k: v for k, v in self.__dict__.items() if k not in kept}
        made.__dict__.update(copy.deepcopy(left, memo))
        made.__dict__.update(kept)
        return made

    def _check_ready(self) -> None:
        if self.prototype_trace is None:
            raise RuntimeError("expected a guide that is set up, got a new one: call guide.setup(*model_args)")

    def _plates(self, joint: RowJoint) -> tuple[dict[str, pyro.plate], Tensor | None]:
        """The plates of a call, and which rows that of the rows has, None for all."""
        structure, frames, (args, kwargs) = self.structure, self._prototype_frames, joint.runs.given
        own = self.create_plates is None and self.master is None
        if own and (structure.is_subsampled or not _same(joint, self.joint)):
            trace = poutine.block(poutine.trace(self.bare_model).get_trace)(*args, **kwargs)
            index = trace.nodes[structure.plate]["value"]  # of this call: as many as it asks for, or chosen outside
            size = next(f for f in _frames(trace) if f.name == structure.plate).full_size
            rows = pyro.plate(structure.plate, int(size), subsample=index, dim=structure.dim)
            self._prototype_frames = {name: frame for name, frame in frames.items() if name != structure.plate}
            try:
                plates = {**self._create_plates(*args, **kwargs), structure.plate: rows}
            finally:
                self._prototype_frames = frames
        else:
            plates = self._create_plates(*args, **kwargs)
        rows = plates[structure.plate]
        if rows.size != structure.rows:
            raise ValueError(
                f"expected the plate {structure.plate!r} with the {structure.rows} rows that the guide was set up "
                f"for, got {rows.size}: make a new guide"
            )
        return plates, rows.indices if structure.is_subsampled else None


def _frames(trace: poutine.Trace) -> Iterator[CondIndepStackFrame]:
    """The plates around the sites of a run."""
    for node in trace.nodes.values():
        yield from node.get("cond_indep_stack") or ()


def _same(one: RowJoint, other: RowJoint) -> bool:
    """Whether two are called with the same objects."""
    (args, kwargs), (others, named) = one.runs.given, other.runs.given
    if len(args) != len(others) or kwargs.keys() != named.keys():
        return False
    return all(map(operator.is_, (*args, *kwargs.values()), (*others, *(named[key] for key in kwargs))))
