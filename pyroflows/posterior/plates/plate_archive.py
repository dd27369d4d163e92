"""A posterior by plate as a file of numbers and strings, and back; nothing in the file is code."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import files
from ...flows import with_tails
from ...guides import AutoPlateFlow
from ...model.rows import RowJoint
from ...seeds import seed_of, seeded
from ...training import History

FORMAT, KIND = "pyroflows posterior by plate 1", "a file of PlatePosterior.save"
KEYS = ("format", "plate", "sites", "state", "points", "terms", "history", "dtype", "num_draws", "seed")
# Devices and versions round differently, by this much relative to the size of a log density.
DOUBLE, SINGLE = 1e-6, 1e-4
POINTS = 4


def pack(guide: AutoPlateFlow, joint: RowJoint, history: History, num_draws: int, seed: int) -> dict[str, Any]:
    """What of a posterior goes into a file: tensors, numbers, strings, and lists and dicts of these."""
    points = _points(guide)
    return {
        "format": FORMAT,
        "plate": joint.structure.plate,
        "sites": _sites(joint),
        "state": dict(guide.state_dict()),
        "points": points,
        "terms": _terms(joint, points),
        "history": asdict(history),
        "dtype": joint.dtype,
        "num_draws": num_draws,
        "seed": seed,
    }


def read(path: str | Path) -> Mapping[str, Any]:
    """Reads a file without running code from it.

    Raises:
        ValueError: if the file is damaged, or not of such a posterior.
    """
    found = files.read(path, KIND)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"expected a file in the format {FORMAT!r}, got {str(path)!r}, which has another")
    return files.check_keys(found, KEYS, KIND)


def unpack(
    found: Mapping[str, Any], model: Callable, args: tuple, kwargs: dict
) -> tuple[AutoPlateFlow, RowJoint, History, int, int]:
    """What a posterior is made of.

    Raises:
        ValueError: if the latents, or model and data, are not those of the file.
    """
    joint = RowJoint(model, args, kwargs, plate=found["plate"], dtype=found["dtype"])
    if found["sites"] != _sites(joint):
        raise ValueError(
            f"expected a model with the saved latents {found['sites']}, got {_sites(joint)}: pass the model and the "
            f"arguments that were fitted"
        )
    bent = any(name.startswith("transform.transforms.1.") for name in found["state"])  # as by the training of fit
    guide = AutoPlateFlow(model, found["plate"], flow=with_tails if bent else None).setup_from(joint, found["state"])
    now, saved = _terms(joint, found["points"]), found["terms"]
    close = DOUBLE if joint.dtype == torch.float64 or guide.loc.dtype == torch.float64 else SINGLE
    if not torch.allclose(now, saved, rtol=close, atol=10 * close, equal_nan=True):
        worst = int((now - saved).abs().argmax())
        raise ValueError(
            f"expected the model and data of the saved posterior, of which a term of the log joint is "
            f"{saved.flatten()[worst]:.4f}, got {now.flatten()[worst]:.4f}: pass the model and the arguments that were "
            f"fitted"
        )
    return guide, joint, History(**found["history"]), found["num_draws"], found["seed"]


def _sites(joint: RowJoint) -> dict[str, list[int]]:
    structure = joint.structure
    found = {site.name: list(site.shape) for site in structure.outer.sites}
    rows = {
        site.name: [*site.shape[: site.axis], structure.rows, *site.shape[site.axis + 1 :]] for site in structure.inner
    }
    return found | rows


@torch.no_grad()
def _points(guide: AutoPlateFlow) -> Tensor:
    """Globals ``(K, Dg)`` at which models are told apart."""
    with seeded(seed_of("fingerprint by plate"), guide.loc.device):
        return guide.outer_posterior().sample((POINTS,)).cpu()


@torch.no_grad()
def _terms(joint: RowJoint, points: Tensor) -> Tensor:
    """The globals' terms and those of rows at zero, with alternating signs so that an exchange of rows is seen."""
    g = points.to(joint.start[0])
    outer, total = 0.0, g.new_zeros(len(g))
    for number, some in enumerate(joint.passes):
        count = joint.structure.seen if some.index is None else len(some.index)
        rows = torch.arange(count).to(g) if some.index is None else some.index.to(g)
        found = joint(g, g.new_zeros(len(g), count, joint.structure.width), some.index)
        outer = found.outer if number == 0 else outer
        weight = some.weight * (1 + 0.5 * rows.sin())
        total = total + ((found.prior + found.rest) * weight).sum(-1)
    return torch.stack([outer, total]).double().cpu()
