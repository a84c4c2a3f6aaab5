"""Errors that a user can act on: what went wrong, where, and what to do, in one line.

Entry points print a `ChameleonError` as one line and exit with code 2; every other exception keeps its traceback,
because it is our fault and not the user's.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ChameleonError(Exception):
    """Base of every error that the user can mend."""


class ConfigError(ChameleonError):
    """A config field, gin binding or flag is wrong or contradicts another."""


class DataError(ChameleonError):
    """A source, record or image cannot be used."""


class StoreError(ChameleonError):
    """A token store or pack plan is missing, damaged or does not belong to this run."""


class TokenizerError(ChameleonError):
    """A tokenizer bundle is missing, damaged or does not fit."""


class CheckpointError(ChameleonError):
    """No checkpoint can be used, or a checkpoint does not belong to this run."""


class TrainingError(ChameleonError):
    """Training cannot go on with these settings."""


class WorkdirError(ChameleonError):
    """The working directory is in use, or cannot be written."""


class ProcessError(ChameleonError):
    """The processes of a run cannot work together: one is missing, ended, or was started differently."""


class ConvertError(ChameleonError):
    """Released weights cannot be read or written as asked."""


class GenerationError(ChameleonError):
    """A prompt or a sampling setting cannot be served."""


class PromptTooLong(GenerationError):
    """The context leaves too little room after a prompt: a shorter one may be served."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the nearest known name, or an empty string."""
    known = list(known)
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not matches:
        lowered = {k.lower(): k for k in known}
        matches = [lowered[m] for m in difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)]
    return f" (did you mean '{matches[0]}'?)" if matches else ""
