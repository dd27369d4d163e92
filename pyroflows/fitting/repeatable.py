"""Whether a log joint is the same whenever it is computed."""

import math

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..model import LogJoint
from ..seeds import seed_of, seeded


def check_repeatable(density: LogJoint) -> None:
    """Raises if the log joint is another one at each call, for the same latents and the same rows of minibatches."""
    first, *others = _runs(density, 3)
    for name, node in first.nodes.items():
        if node["type"] != "sample" or _has_rows_of_its_own(node, first):
            continue
        expected = node["log_prob"]
        for other in others:
            again = other.nodes[name]["log_prob"] if name in other.nodes else expected.new_full((), math.nan)
            if _differ(expected, again):
                raise ValueError(
                    f"fit expected a log joint that is the same whenever it is computed, got another one at the site "
                    f"{name!r}: {expected.sum().item():.6g}, then {again.sum().item():.6g}, for the same latents. The "
                    f"model draws random numbers of its own, or counts its calls: draw them once, before the model; "
                    f"take minibatches by pyro.plate(name, size, subsample_size=...); put dropout into .eval()"
                )


def _differ(expected: Tensor, again: Tensor) -> bool:
    """Whether two log densities differ by more than rounding."""
    size = expected.abs().nan_to_num(posinf=0.0).max().item() if expected.numel() else 0.0
    near = torch.finfo(expected.dtype).eps ** 0.5 * size
    return expected.shape != again.shape or not torch.allclose(expected, again, rtol=0.0, atol=near, equal_nan=True)


@torch.no_grad()
def _runs(density: LogJoint, count: int) -> list[poutine.Trace]:
    """Runs of a model near its start, with the same latents and the same choice of rows, from several seeds."""
    found, rows, device = [], {}, density.space.start.device
    with seeded(seed_of("where a log joint is repeated"), device):
        values = density.constrain(density.space.start + 0.1 * torch.randn_like(density.space.start))
    with pyro.validation_enabled(False):
        for turn in range(count):
            with seeded(seed_of(f"noise {turn} of a log joint"), device):
                found.append(density.trace({**values, **rows}))
            found[-1].compute_log_prob()
            rows = {name: node["value"] for name, node in found[0].nodes.items() if site_is_subsample(node)}
    return found


def _has_rows_of_its_own(node: dict, trace: poutine.Trace) -> bool:
    """Whether a site stands in a plate whose rows the model chose by itself, which no handler can repeat."""
    return any(f.full_size not in (None, f.size) and f.name not in trace.nodes for f in node["cond_indep_stack"])
