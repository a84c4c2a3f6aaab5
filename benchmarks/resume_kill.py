"""kill -9 at random moments of a real pretraining run, again and again: losses must be bitwise those of a run left alone.

    python benchmarks/resume_kill.py --rounds=20

Runs gin_configs/runs/smoke.gin to the end once. Then a second run is started, killed after a random time (often while it saves:
it saves every step), and started again, until `rounds` kills have been made; then it is left to finish. Prints one JSON line.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
CLOCK = {"tokens_per_second", "mfu", "data_wait_fraction", "step_seconds", "eta_seconds"}


def prepare(data: Path) -> None:
    """Token stores for both runs, so that only training is under test."""
    command = [sys.executable, "-m", "experiments.digits", "--stores", f"--workdir={data}"]
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)


def start(workdir: Path, steps: int) -> subprocess.Popen:
    store = workdir.parent / "data" / "store"
    command = [sys.executable, "-m", "experiments.pretrain", "--gin_file=gin_configs/runs/smoke.gin"]
    command += [f"--gin.TRAIN={store / 'train'}", f"--gin.HELDOUT={store / 'heldout'}", f"--workdir={workdir}"]
    command += [f"--gin.TrainConfig.steps={steps}", "--gin.CheckpointConfig.every_steps=1"]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)


def losses(workdir: Path) -> dict[int, dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: {k: v for k, v in line.items() if k not in CLOCK} for line in lines if "loss" in line}


def listed_steps(workdir: Path) -> list[int]:
    return (
        sorted(int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*"))
        if (workdir / "checkpoints").exists()
        else []
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--workdir", type=Path, default=Path("runs/resume_kill"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    whole, killed = args.workdir.resolve() / "whole", args.workdir.resolve() / "killed"
    prepare(args.workdir.resolve() / "data")
    if start(whole, args.steps).wait():
        sys.exit("the run without kills failed")
    shutil.rmtree(killed, ignore_errors=True)
    random.seed(args.seed)
    lost, in_save = 0, 0
    for _ in range(args.rounds):
        before = listed_steps(killed)
        process = start(killed, args.steps)
        while process.poll() is None and listed_steps(killed) == before:  # until it has resumed and saved a step
            time.sleep(0.02)
        time.sleep(random.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        in_save += any((killed / "checkpoints").glob(".saving-*"))
        after = listed_steps(killed)
        lost += bool(before and after and max(after) < max(before))
    if start(killed, args.steps).wait():
        sys.exit("the run with kills could not be finished")
    first, second = losses(whole), losses(killed)
    different = [step for step in first if first[step] != second.get(step)]
    result = {"kills": args.rounds, "kills_during_a_save": in_save, "listed_steps_lost": lost, "steps": len(first)}
    print(json.dumps(result | {"steps_that_differ": different}))
    sys.exit(bool(different or lost))


if __name__ == "__main__":
    main()
