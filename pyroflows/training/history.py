"""What a fit recorded at each step."""

import math
from dataclasses import dataclass, field


@dataclass
class History:
    """What a fit recorded at each step.

    Args:
        elbo: estimate of the ELBO in nats, NaN at a dropped step.
        log_weight_sd: standard deviation of the log importance weights over the particles.
        bad_steps: how many steps were dropped.
        stopped: why the fit ended.
        speed: how the steps were run: ``"plain"``, ``"traced"`` or ``"compiled"``, and why if not as asked.
        missed: the share of the mass, about, of each mode that the flow missed, by its place in unconstrained space.
    """

    elbo: list[float] = field(default_factory=list)
    log_weight_sd: list[float] = field(default_factory=list)
    bad_steps: int = 0
    stopped: str = ""
    speed: str = "plain"
    missed: dict[str, float] = field(default_factory=dict)

    def note(self, elbo: float, log_weight_sd: float) -> None:
        """Records a step."""
        self.elbo.append(elbo)
        self.log_weight_sd.append(log_weight_sd)

    def window(self, size: int, end: int | None = None) -> list[float]:
        """The finite ELBOs of the last ``size`` steps, or of those before ``end``."""
        end = len(self.elbo) if end is None else max(end, 0)
        return [e for e in self.elbo[max(end - size, 0) : end] if math.isfinite(e)]
