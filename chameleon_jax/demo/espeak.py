"""Speech from eSpeak NG (the shared library and its data in the wheel of `espeakng-loader`), the same on every call.

The library keeps state of its own from one utterance to the next, and noise of it begins with the clock. `speak` therefore runs
it in a process of its own with a fixed seed: equal lists of utterances give equal samples.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int16

from chameleon_jax.errors import DataError

RATE = 22_050  # samples a second of all its voices

# speak_lib.h of eSpeak NG 1.52.
_SYNCHRONOUS, _UTF8, _SEED = 2, 1, 1
_RATE, _PITCH = 1, 3


@dataclasses.dataclass(frozen=True)
class Utterance:
    """`voice` is a language file with a variant, as in "gmw/en-US+f2"; `pitch` is 0..99, and 50 is the voice's own."""

    text: str
    voice: str
    words_per_minute: int
    pitch: int


def available() -> bool:
    """Whether the wheel is installed."""
    return importlib.util.find_spec("espeakng_loader") is not None


def speak(utterances: Sequence[Utterance]) -> list[Int16[np.ndarray, "_"]]:
    """Samples of each utterance at `RATE`. Raises DataError when the library is not installed or lacks a voice."""
    if not available():
        raise DataError("no speech synthesiser: install it with  pip install 'chameleon-jax[demo]'")
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)])}
    ended = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps([dataclasses.asdict(utterance) for utterance in utterances]).encode(),
        capture_output=True,
        env=environment,
    )
    if ended.returncode:
        lines = ended.stderr.decode(errors="replace").strip().splitlines()
        raise DataError(f"eSpeak NG failed: {lines[-1] if lines else f'exit code {ended.returncode}'}")
    lengths, samples = _unpack(ended.stdout, len(utterances))
    return np.split(samples, np.cumsum(lengths)[:-1])


def _unpack(data: bytes, count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.frombuffer(data, np.int64, count), np.frombuffer(data, np.int16, offset=8 * count)


def _synthesise() -> None:
    """Read utterances as JSON from stdin; write their lengths (int64) and their samples (int16) to stdout."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
    if rate != RATE:
        sys.exit(f"it starts with {rate} samples a second instead of {RATE}")
    library.espeak_ng_SetRandSeed(ctypes.c_long(_SEED))
    pieces: list[np.ndarray] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int16), ctypes.c_int, ctypes.c_void_p)
    def receive(samples, count, events):
        if samples and count > 0:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    library.espeak_SetSynthCallback(receive)
    spoken = []
    for asked in json.load(sys.stdin):
        if library.espeak_SetVoiceByName(asked["voice"].encode()):
            sys.exit(f"no voice {asked['voice']!r}")
        library.espeak_SetParameter(_RATE, asked["words_per_minute"], 0)
        library.espeak_SetParameter(_PITCH, asked["pitch"], 0)
        text = asked["text"].encode() + b"\0"
        pieces.clear()
        library.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, 1, 0, _UTF8, None, None)
        spoken.append(np.concatenate(pieces) if pieces else np.zeros(0, np.int16))
    sys.stdout.buffer.write(np.asarray([len(one) for one in spoken], np.int64).tobytes())
    sys.stdout.buffer.write(b"".join(one.tobytes() for one in spoken))


if __name__ == "__main__":
    _synthesise()
