"""Places of a corpus that cannot be read: they stop the reading, or are left out and counted."""

from collections import Counter
from dataclasses import dataclass, field

from yayan.errors import UserError

SHOWN_PLACES = 5  # broken places that are remembered


class BadLineError(UserError):
    """A place that cannot be read, mostly a line; `reason` is its kind in a few words."""

    def __init__(self, reason: str, what: str, *, where: str, cure: str) -> None:
        super().__init__(what, where=where, cure=cure)
        self.reason, self.what, self.where, self.cure = reason, what, where, cure


@dataclass
class Bad:
    """What one reading does with broken places: `skip` leaves them out and counts them, otherwise they stop it.

    It is for callers that have an option `skip_bad`: the sentence of the error names that option.
    """

    skip: bool
    reasons: Counter[str] = field(default_factory=Counter)
    places: list[str] = field(default_factory=list)  # of the first few, `FILE:LINE: REASON`

    @property
    def lines(self) -> int:
        return self.reasons.total()

    def take(self, line: BadLineError) -> None:
        """Count a broken place, or raise UserError."""
        if not self.skip:
            raise UserError(line.what, where=line.where, cure=f"{line.cure}, or pass --skip-bad") from line
        self.reasons[line.reason] += 1
        if len(self.places) < SHOWN_PLACES:
            self.places.append(f"{line.where}: {line.reason}")

    def figures(self) -> dict[str, object]:
        """For the metrics of a stage: places left out, how many for each reason, where the first few stand."""
        return {"lines": self.lines, "reasons": dict(self.reasons), "places": self.places}


def take(line: BadLineError, bad: Bad | None) -> None:
    """Let `bad` count or refuse a broken place; without it, raise the error as it is."""
    if bad is None:
        raise line
    bad.take(line)
