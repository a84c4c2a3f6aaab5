"""Real processes of `experiments.train_tokenizer` that are told to stop at any moment, and go on to the same bundle bit for bit."""

import json
import random
import signal
import subprocess
import sys
import time
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chameleon_jax.training.signals import EXIT_STOPPED
from chameleon_jax.workdir import LOCK

STEPS = 200
BUNDLE = ("tokenizer.json", "vocab.json", "vqgan.safetensors", "sound.safetensors")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two manifests of words with a picture of 8x8 pixels and a sound of 0.64 s each."""
    folder, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for part, count in (("train", 48), ("heldout", 8)):
        records = []
        for i in range(count):
            name = f"{part}-{i}"
            pixels = np.kron(draw.integers(0, 256, (2, 2, 3)), np.ones((4, 4, 1))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}.png")
            tone = np.sin(2 * np.pi * draw.integers(200, 2000) * np.arange(5120) / 8000)
            with wave.open(str(folder / f"{name}.wav"), "wb") as file:
                file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000)
                file.writeframes((tone * 8000).astype("<i2").tobytes())
            spoken = {"text": f"number {draw.integers(1000)}"}
            records.append({"id": name, "segments": [spoken, {"image": f"{name}.png"}, {"sound": f"{name}.wav"}]})
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def _start(data: Path, workdir: Path) -> subprocess.Popen:
    flags = (
        "--gin_file=gin_configs/runs/three_modalities_tokenizer.gin",
        f"--gin.DATA={data}",
        f"--gin.VQTrainConfig.steps={STEPS}",
        f"--gin.SoundTrainConfig.steps={STEPS}",
        *("--gin.VQConfig.channels=8", "--gin.VQConfig.latent_channels=8", "--gin.VQTrainConfig.batch_size=8"),
        *("--gin.SoundConfig.channels=16", "--gin.SoundConfig.phase_steps=2", "--gin.SoundTrainConfig.batch_size=4"),
        f"--workdir={workdir}",
    )
    command = [sys.executable, "-m", "experiments.train_tokenizer", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _bundle(workdir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(workdir.glob("*")) if path.name in BUNDLE}


def _wait_for(path: Path, process: subprocess.Popen) -> None:
    """Until the file has something in it; fails when the process ends before."""
    while not (path.exists() and path.stat().st_size):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


@pytest.mark.slow
def test_sigterm_at_ten_random_moments_changes_no_bit_of_the_bundle(data, tmp_path):
    process = _start(data, tmp_path / "whole")
    _wait_for(tmp_path / "whole" / LOCK, process)
    begin = time.monotonic()
    output = process.communicate(timeout=300)[0]
    took, draw, ended = time.monotonic() - begin, random.Random(0), []
    assert process.returncode == 0, output
    for _ in range(10):
        (tmp_path / "parts" / LOCK).unlink(missing_ok=True)
        process = _start(data, tmp_path / "parts")
        _wait_for(tmp_path / "parts" / LOCK, process)
        time.sleep(draw.uniform(0, took / 4))  # half of a run is spent on imports and compilation again
        process.send_signal(signal.SIGTERM)
        output = process.communicate(timeout=300)[0]
        ended.append(process.returncode)
        assert process.returncode in (0, EXIT_STOPPED) and "Traceback" not in output, output
    assert ended.count(EXIT_STOPPED) > 5, ended
    process = _start(data, tmp_path / "parts")
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    whole, parts = _bundle(tmp_path / "whole"), _bundle(tmp_path / "parts")
    assert whole.keys() == set(BUNDLE) and parts == whole


def test_a_stop_while_training_saves_and_says_how_to_go_on(data, tmp_path):
    process = _start(data, tmp_path)
    _wait_for(tmp_path / "metrics.jsonl", process)
    second = _start(data, tmp_path)
    refused = second.communicate(timeout=120)[0]
    assert second.returncode == 2 and "is in use by process" in refused
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == EXIT_STOPPED, output
    assert "of 200, saved; run the same command to go on" in output
    assert (tmp_path / "codec_state.safetensors").exists()
