"""How often something was right, with its interval: what the demonstrations report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Proportion:
    """`right` of `n`."""

    right: int
    n: int

    @classmethod
    def of(cls, outcomes: Iterable[bool]) -> Proportion:
        """Counts truth values, at least one."""
        values = [bool(outcome) for outcome in outcomes]
        return cls(sum(values), len(values))

    @property
    def share(self) -> float:
        return self.right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of 95 % (Wilson 1927)."""
        from scipy.stats import binomtest

        found = binomtest(self.right, self.n).proportion_ci(method="wilson")
        return found.low, found.high

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.share:.1%} of {self.n} ({low:.1%} to {high:.1%})"

    def to_dict(self) -> dict[str, float | int | list[float]]:
        """For JSON files."""
        return {"share": self.share, "right": self.right, "n": self.n, "interval": list(self.interval)}
