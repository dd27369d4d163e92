"""Draws that were corrected, and proposals with their weights to correct them by."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...guides import AutoFlow
from ...model import LogJoint
from ..chain_diagnostics import ChainDiagnostics
from ..draws import Draws
from ..importance_diagnostics import Diagnostics

# Proposals that are scored at once.
BATCH = 10_000


class Refined(Draws):
    """Draws of a posterior that were corrected by its log joint; made by :meth:`pyroflows.Posterior.refine`.

    Args:
        method: how they were corrected.
        log_joint: the model's log joint density.
        vectors: the draws in unconstrained space, ``(chains, draws, D)``.
        diagnostics: how far they can be trusted.
        stats: what is known of each draw, ``(chains, draws)`` by name.
        weights: their weights ``(S,)``, or None for equal ones.
    """

    def __init__(
        self,
        method: str,
        log_joint: LogJoint,
        vectors: Tensor,
        diagnostics: Diagnostics | ChainDiagnostics,
        stats: dict[str, NDArray],
        weights: NDArray | None = None,
    ) -> None:
        self.method, self.log_joint, self.weighted = method, log_joint, weights is not None
        self._vectors, self._diagnostics, self._stats = vectors, diagnostics, stats
        count = vectors.shape[0] * vectors.shape[1]
        self._weights = np.full(count, 1 / count) if weights is None else weights

    @property
    def vectors(self) -> Tensor:
        """The draws in unconstrained space, of shape ``(chains, draws, D)``."""
        return self._vectors

    @property
    def weights(self) -> NDArray:
        """Weights of all draws ``(S,)``, summing to one."""
        return self._weights

    @property
    def diagnostics(self) -> Diagnostics | ChainDiagnostics:
        """How far the draws can be trusted."""
        return self._diagnostics

    @property
    def stats(self) -> dict[str, NDArray]:
        """Statistics of each draw, ``(chains, draws)`` by name."""
        return self._stats

    def beside(self, missed: Mapping[str, float]) -> "Refined":
        """The same draws where modes were missed, which no correction of a flow's draws reaches."""
        self._diagnostics = replace(self._diagnostics, missed=missed)
        return self

    def new(self, num_samples: int) -> Tensor:
        """Picks among the draws, with replacement and by their weights: ``(num_samples, D)``, unconstrained."""
        picked = torch.multinomial(torch.as_tensor(self.weights), num_samples, replacement=True)
        return self.vectors.flatten(0, 1)[picked.to(self.vectors.device)]

    def __repr__(self) -> str:
        chains, draws, _ = self.vectors.shape
        return f"Refined by {self.method!r}: {chains} x {draws} draws of {list(self.draws)}.\n{self.diagnostics}"


@torch.no_grad()
def propose(guide: AutoFlow, log_joint: LogJoint, count: int) -> tuple[Tensor, NDArray]:
    """Draws of the guide, ``(count, D)``, and their ``log p(draw, data) - log q(draw)``, ``(count,)`` in nats."""
    found, weights = [], []
    for start in range(0, count, BATCH):
        z, log_q = guide.get_posterior().rsample_and_log_prob((min(BATCH, count - start),))
        found.append(z)
        weights.append(log_joint(z) - log_q)
    return torch.cat(found), torch.cat(weights).double().cpu().numpy()
