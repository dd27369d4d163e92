"""A fitted guide as a file of numbers and strings, and back; nothing in the file is code."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import files
from ..distributions.component_bases import remade
from ..guides import AutoFlow
from ..model import LogJoint
from ..model.noncentered import noncentered
from ..seeds import seed_of, seeded
from ..training import History
from ..transforms import NestedGaussian

FORMAT, KIND = "pyroflows posterior 2", "a file of Posterior.save"
# The log joint at the centre, at draws of the guide and at some farther out is the model's fingerprint.
NEAR, FAR, WIDER = 8, 8, 3.0
# Devices and versions round differently, by these relative and ten times these absolute errors.
DOUBLE, SINGLE = 1e-6, 1e-5
KEYS = (
    "format",
    "sites",
    "noncentered",
    "state",
    "base",
    "parameters",
    "points",
    "log_joint",
    "history",
    "dtype",
    "num_draws",
    "seed",
)


def pack(guide: AutoFlow, log_joint: LogJoint, history: History, num_draws: int, seed: int) -> dict[str, Any]:
    """What of a posterior goes into a file: tensors, numbers, strings, and lists and dicts of these."""
    points = _points(guide)
    return {
        "format": FORMAT,
        "sites": _sites(guide),
        "noncentered": guide.fixed is not None,
        "state": dict(guide.transform.state_dict()),
        "base": _base(guide),
        "parameters": log_joint.parameters(),
        "points": points,
        "log_joint": _fingerprint(log_joint, points),
        "history": asdict(history),
        "dtype": log_joint.dtype,
        "num_draws": num_draws,
        "seed": seed,
    }


def read(path: str | Path) -> Mapping[str, Any]:
    """Reads a file without running code from it.

    Raises:
        ValueError: if the file is damaged, or not of a posterior.
    """
    found = files.read(path, KIND)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"expected a file in the format {FORMAT!r}, got {str(path)!r}, which has another")
    files.check_keys(found["history"], asdict(History()).keys(), f"the history in {KIND}")
    return files.check_keys(found, KEYS, KIND)


def held(found: Mapping[str, Any], log_joint: LogJoint) -> LogJoint:
    """The log joint with the saved values of the model's own parameters.

    Raises:
        ValueError: if the model has others.
    """
    saved, own = found["parameters"], log_joint.parameters()
    kinds = [{name: tuple(value.shape) for name, value in values.items()} for values in (saved, own)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"expected a model with the saved parameters {kinds[0]}, got {kinds[1]}: pass the model fitted"
        )
    return log_joint.holding({name: value.to(own[name]) for name, value in saved.items()})


def unpack(found: Mapping[str, Any], guide: AutoFlow, log_joint: LogJoint) -> tuple[History, int, int]:
    """Puts the saved numbers into a guide; returns history, number of draws and seed.

    Raises:
        ValueError: if the latents, the flow, or model and data are not those of the file.
    """
    if found["sites"] != _sites(guide):
        raise ValueError(
            f"expected a model with the saved latents {found['sites']}, got {_sites(guide)}: pass the model and the "
            f"arguments that were fitted"
        )
    few = found["state"].get("transforms.1.few")
    if few is not None:
        guide.around(NestedGaussian(guide.latent_dim, few).to(found["state"]["transforms.1.loc"]))
    elif found["noncentered"] and (fixed := noncentered(log_joint)) is not None:
        guide.within(fixed)
    own = guide.transform.state_dict()
    kinds = [{name: (tuple(t.shape), t.dtype) for name, t in state.items()} for state in (found["state"], own)]
    differing = sorted(name for name in kinds[0].keys() | kinds[1].keys() if kinds[0].get(name) != kinds[1].get(name))
    if differing:
        name = differing[0]
        raise ValueError(
            f"expected a guide made like the saved one, with {name} of {kinds[0].get(name)}, got {kinds[1].get(name)}: "
            f"pass guide=AutoFlow(model, flow=...) with the same flow, under the same default dtype"
        )
    guide.transform.load_state_dict(found["state"])
    _set_base(guide, found["base"])
    _check_fingerprint(found, log_joint)
    return History(**found["history"]), found["num_draws"], found["seed"]


def _check_fingerprint(found: Mapping[str, Any], log_joint: LogJoint) -> None:
    saved, now = found["log_joint"], _fingerprint(log_joint, found["points"])
    if saved is None or now is None:
        return
    close = DOUBLE if torch.float64 in (log_joint.dtype, log_joint.space.start.dtype) else SINGLE
    same = torch.isclose(now, saved, rtol=close, atol=10 * close, equal_nan=True)
    if not same.all():
        worst = int((~same).float().argmax())
        raise ValueError(
            f"expected the model and data of the saved posterior, whose log joint at a draw is {saved[worst]:.4f}, got "
            f"{now[worst]:.4f}, and another at {int((~same).sum())} of {len(saved)} points: pass the model and the "
            f"arguments that were fitted"
        )


def _sites(guide: AutoFlow) -> dict[str, list[int]]:
    return {site.name: list(site.shape) for site in guide.space.sites}


def _base(guide: AutoFlow) -> list[Tensor] | Tensor:
    """The numbers of a mixture, which ``fit`` finds; of another base only its log density at the origin."""
    if guide.components:
        return [*guide.components[0].tensors]
    return guide.get_base_dist().log_prob(torch.zeros_like(guide.space.start)).double().cpu()


def _set_base(guide: AutoFlow, saved: list[Tensor] | Tensor) -> None:
    if isinstance(saved, list):
        guide.base = remade(saved).to(guide.space.start)
    elif isinstance(own := _base(guide), list) or not torch.isclose(own, saved):
        raise ValueError(
            f"expected a guide with the saved base, got one with {guide.get_base_dist()}, whose density is another: "
            f"pass guide=AutoFlow(model, flow, base=...) with the same flow and base"
        )


@torch.no_grad()
def _points(guide: AutoFlow) -> Tensor:
    """Vectors ``(K, D)`` at which models are told apart: the centre of the guide, draws, and some farther out."""
    with seeded(seed_of("fingerprint"), guide.device):
        x = guide.get_base_dist().sample((NEAR + FAR,))
    x = torch.cat([torch.zeros_like(x[:1]), x[:NEAR], WIDER * x[NEAR:]])
    return guide.transform(x).cpu()


@torch.no_grad()
def _fingerprint(log_joint: LogJoint, points: Tensor) -> Tensor | None:
    """The log joint at points ``(K, D)``; None where it is of a minibatch."""
    return None if log_joint.minibatch else log_joint(points.to(log_joint.space.start)).double().cpu()
