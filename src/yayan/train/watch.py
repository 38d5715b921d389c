"""What the held-out texts say during training: which parameters were best, when to end, when to call out."""

import math
import sys
from dataclasses import dataclass, field

Measured = dict[str, float]  # bits per byte by the name of the text


@dataclass
class Watch:
    """Follows the measurements of a run. The text that decides what is best is the first one.

    `patience`: measurements without a better one after which the run ends. `bounds`: by how large a share of its first
    value a text may rise before an alarm is raised (0.1: by a tenth).
    """

    patience: int | None = None
    bounds: dict[str, float] = field(default_factory=dict)
    first: Measured = field(default_factory=dict)
    best: float = math.inf
    best_step: int = 0
    since_best: int = 0
    alarms: list[str] = field(default_factory=list)

    def take(self, step: int, measured: Measured) -> bool:
        """Add a measurement; returns whether it is the best one. Alarms are printed, and kept."""
        self.first = self.first or measured
        deciding = next(iter(measured.values()))
        better = deciding < self.best
        self.since_best = 0 if better else self.since_best + 1
        if better:
            self.best, self.best_step = deciding, step
        for name, bound in self.bounds.items():
            before, now = self.first[name], measured[name]
            if now > before * (1 + bound):
                alarm = f"step {step}: {name} has risen from {before:.3f} to {now:.3f} bits per byte"
                self.alarms.append(alarm)
                print(f"  {alarm}, more than the bound of {bound:.0%}", file=sys.stderr, flush=True)
        return better

    @property
    def ends(self) -> bool:
        """Whether the run has gone on long enough without a better measurement."""
        return self.patience is not None and self.since_best >= self.patience
