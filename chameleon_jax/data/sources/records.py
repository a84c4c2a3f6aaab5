"""What a container reader hands on: records whose costly part is loaded only when somebody wants it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable

from chameleon_jax.tokenizers.documents import Segment

# One file or one line larger than this is damage or an attack, not data.
MAX_FILE_BYTES = 64 << 20
MAX_RECORD_BYTES = 256 << 20
DETAILS = re.compile(r"'[^']*'|\d+")  # names and numbers in a reason


@dataclasses.dataclass(frozen=True)
class Reject:
    """A record that cannot be used: its source, its place in it, and why, in one line."""

    source: str
    record: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Record:
    """One record as its container holds it.

    `place` is `<file>/<index>`, unique in the source. `own_id` and `split` are the record's own fields, None where it has none.
    `load` gives the segments and raises DataError with the reason when the record cannot be used; it may be called once, before
    the next record is asked for.
    """

    place: str
    own_id: object
    split: object
    load: Callable[[], tuple[Segment, ...]]


def by_reason(rejects: Iterable[Reject], details: re.Pattern[str] = DETAILS) -> list[list[Reject]]:
    """Rejects of one reason together, the most frequent first; what `details` finds in a reason does not make another one."""
    kinds: dict[str, list[Reject]] = {}
    for reject in rejects:
        kinds.setdefault(details.sub("#", reject.reason), []).append(reject)
    return sorted(kinds.values(), key=len, reverse=True)


def brief(value: object, limit: int = 80) -> str:
    """A value in a reason: its repr on one line, cut at `limit` characters."""
    try:
        text = repr(value[: 4 * limit] if isinstance(value, (str, bytes)) else value)
    except (RecursionError, ValueError):  # nested too deep, or an integer of thousands of digits
        text = f"a {type(value).__name__}"
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= limit else text[: limit - 3] + "..."
