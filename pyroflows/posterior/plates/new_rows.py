"""Rows that a fit did not have, given its globals and data of their own."""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from ...guides import AutoPlateFlow
from ...guides.plates.row_form import RowForm
from ...infer import Gaussian
from ...infer.nested.marginal import modes
from ...infer.nested.sites import expanded
from ...infer.nested.start import Start
from ...model.rows import RowJoint, Structure, check_followed
from ...model.sites import trace_of


class NewRows(NamedTuple):
    """What draws and weighs new rows.

    Args:
        joint: the model at their data.
        form: the conditional of their latents.
    """

    joint: RowJoint
    form: RowForm

    @classmethod
    @torch.no_grad()
    def of(cls, guide: AutoPlateFlow, known: RowJoint, data: list[str], args: tuple, kwargs: dict) -> "NewRows":
        """Reads the model at the new arguments, and finds the rows' modes and their slopes at the guide's globals.

        Args:
            guide: has the globals.
            known: the model at the fit's arguments.
            data: the sites that the fit observed; those without data now are left out.
            args: new arguments.
            kwargs: new keyword arguments.

        Raises:
            ValueError: if the model has other latents with them.
        """
        runs = known.at(args, kwargs).runs
        with runs.settings():
            nodes = trace_of(runs.model, runs.args, runs.kwargs).nodes
        unseen = [name for name in data if name in nodes and not nodes[name]["is_observed"]]
        joint = guide.read(args, kwargs, known.dtype, hide=unseen)
        check_followed(joint)
        _check(known.structure, joint.structure)
        z = joint.start[1]
        if len(z) < joint.structure.rows:
            z = z.new_zeros(joint.structure.rows, z.shape[-1]) + z.mean(0)
        with poutine.block():
            start = Start(Gaussian(guide.loc, guide.root), modes(joint, guide.loc, z), float("nan"))
            return cls(joint, RowForm(expanded(joint, start)))


def _check(known: Structure, new: Structure) -> None:
    """Raises unless all latents are the same, but for the number of rows."""
    shapes, others = _shapes(known), _shapes(new)
    for name in [*shapes, *others]:
        if shapes.get(name) != others.get(name):
            there, here = (
                f"of shape {tuple(found[name])}" if name in found else "not there" for found in (shapes, others)
            )
            raise ValueError(
                f"expected arguments that change the number of rows of plate {known.plate!r} and their data alone, got "
                f"ones with which the latent {name!r} is {here}, and in the fit {there}: pass what the fit was passed, "
                f"of other rows"
            )


def _shapes(structure: Structure) -> dict[str, torch.Size]:
    """The shapes of the globals, and of each row's sites without the dimension of rows."""
    found = {site.name: site.shape for site in structure.outer.sites}
    return found | {site.name: site.shape[: site.axis] + site.shape[site.axis + 1 :] for site in structure.inner}


def log_mean(parts: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The log of the weighted mean of densities ``(R,)``, given in parts log weights ``(S,)`` and logs ``(S, R)``."""
    found = (torch.logsumexp(weights[:, None] + logs, 0) for weights, logs in parts)
    return functools.reduce(torch.logaddexp, found)
