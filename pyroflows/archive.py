"""A fitted guide as a file of numbers and strings, and back; nothing in the file is code."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .bases import ComponentBase, MixtureBase, ProductBase
from .guides import AutoFlow
from .infer import History, LogJoint
from .noncentered import noncentered

FORMAT = "pyroflows posterior 1"
# The log joint at one point is the model's fingerprint; devices and versions round differently.
TOLERANCE = 1e-3


def pack(guide: AutoFlow, log_joint: LogJoint, history: History, num_draws: int, seed: int) -> dict[str, Any]:
    """What of a posterior goes into a file: tensors, numbers, strings, and lists and dicts of these."""
    return {
        "format": FORMAT,
        "sites": _sites(guide),
        "noncentered": guide.fixed is not None,
        "state": dict(guide.transform.state_dict()),
        "base": _base(guide),
        "log_joint": None if log_joint.minibatch else _fingerprint(guide, log_joint),
        "history": asdict(history),
        "dtype": log_joint.dtype,
        "num_draws": num_draws,
        "seed": seed,
    }


def read(path: str | Path) -> dict[str, Any]:
    """Reads a file without running code from it.

    Raises:
        ValueError: if the file is not of a posterior.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch raises what comes first in a file that is not its own
        raise ValueError(f"expected a file of Posterior.save, got {str(path)!r}, which is not one") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"expected a file in the format {FORMAT!r}, got {str(path)!r}, which has another")
    return found


def unpack(found: dict[str, Any], guide: AutoFlow, log_joint: LogJoint) -> tuple[History, int, int]:
    """Puts the saved numbers into a guide; returns history, number of draws and seed.

    Raises:
        ValueError: if the latents, the flow, or model and data are not those of the file.
    """
    if found["sites"] != _sites(guide):
        raise ValueError(
            f"expected a model with the saved latents {found['sites']}, got {_sites(guide)}: pass the model and the "
            f"arguments that were fitted"
        )
    if found.get("noncentered") and (fixed := noncentered(log_joint)) is not None:
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
    saved = found["log_joint"]
    now = None if log_joint.minibatch else _fingerprint(guide, log_joint)
    if None not in (saved, now) and not torch.isclose(now, saved, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
        raise ValueError(
            f"expected the model and data of the saved posterior, whose log joint at its centre is {saved:.4f}, got "
            f"{now:.4f}: pass the same arguments, and load the model's own parameters first"
        )
    return History(**found["history"]), found["num_draws"], found["seed"]


def _sites(guide: AutoFlow) -> dict[str, list[int]]:
    return {site.name: list(site.shape) for site in guide.space.sites}


def _base(guide: AutoFlow) -> list[Tensor] | Tensor:
    """The numbers of a mixture, which ``fit`` finds; of another base only its log density at the origin."""
    base = guide.get_base_dist()
    if isinstance(base, ComponentBase):
        return [*base.tensors]
    return base.log_prob(torch.zeros_like(guide.space.start)).double().cpu()


def _set_base(guide: AutoFlow, saved: list[Tensor] | Tensor) -> None:
    if isinstance(saved, list):
        guide.base = (MixtureBase if len(saved) == 3 else ProductBase)(*saved).to(guide.space.start)
    elif isinstance(own := _base(guide), list) or not torch.isclose(own, saved):
        raise ValueError(
            f"expected a guide with the saved base, got one with {guide.get_base_dist()}, whose density is another: "
            f"pass guide=AutoFlow(model, flow, base=...) with the same flow and base"
        )


@torch.no_grad()
def _fingerprint(guide: AutoFlow, log_joint: LogJoint) -> Tensor:
    """The log joint at the image of the base's origin."""
    return log_joint(guide.transform(torch.zeros_like(guide.space.start))).double().cpu()
