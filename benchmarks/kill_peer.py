"""kill -9 one of two training processes, again and again: the other must name it and end, and the same command must go on.

    python benchmarks/kill_peer.py --rounds=10

Runs gin_configs/runs/smoke.gin once undisturbed by two processes of four simulated CPU devices. Then a second run of two, in which
every round one of them (0 and 1 in turn) is killed after a random time of training; then it is left to finish, and its losses
must be those of the undisturbed run. Prints a row a round and one JSON line; exit code 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 60.0  # seconds for the other process to end


def start(workdir: Path, steps: int) -> list[subprocess.Popen]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-m", "experiments.pretrain", "--gin_file=gin_configs/runs/smoke.gin"]
    command += [f"--gin.{name}={workdir.parent / 'data' / 'store' / name.lower()}" for name in ("TRAIN", "HELDOUT")]
    command += [f"--workdir={workdir}", f"--gin.TrainConfig.steps={steps}", "--gin.CheckpointConfig.every_steps=3"]
    command += ["--gin.TrainConfig.peak_flops=1e12", f"--coordinator=localhost:{port}", "--num_processes=2"]
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    quiet = {"cwd": ROOT, "env": environment, "stdout": subprocess.DEVNULL}
    return [
        subprocess.Popen([*command, f"--process_id={i}"], stderr=log_of(workdir, i).open("w"), **quiet) for i in (0, 1)
    ]


def log_of(workdir: Path, process: int) -> Path:
    return workdir.with_name(f"{workdir.name}.log{process}")


def losses(workdir: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def logged(workdir: Path) -> int:
    """Steps that process 0 of this start has reported."""
    return len(re.findall(r"^step ", log_of(workdir, 0).read_text(), re.MULTILINE))


def finish(workdir: Path, steps: int) -> None:
    codes = [process.wait() for process in start(workdir, steps)]
    if codes != [0, 0]:
        sys.exit(f"a run without a kill ended with {codes}; see {log_of(workdir, 0)}")


def kill_one(workdir: Path, steps: int, victim: int, pause: float) -> tuple[str, list[str]]:
    """One round: what happened, and what was wrong with it."""
    processes = start(workdir, steps)
    while logged(workdir) < 2 and all(process.poll() is None for process in processes):
        time.sleep(0.05)
    time.sleep(pause)
    if processes[victim].poll() is not None:
        return f"process {victim} had ended before the kill", ["nothing was killed; use more --steps"]
    processes[victim].send_signal(signal.SIGKILL)
    begin = time.monotonic()
    other = processes[1 - victim]
    try:
        code = other.wait(LIMIT)
    except subprocess.TimeoutExpired:
        other.kill()
        other.wait()
        return "", [f"process {1 - victim} did not end within {LIMIT:.0f} s"]
    seconds = time.monotonic() - begin
    log = log_of(workdir, 1 - victim).read_text()
    named = re.search(rf"^error: process {victim} \(host .*, pid {processes[victim].pid}\) ended", log, re.MULTILINE)
    wrong = [] if code == 1 else [f"exit code {code}"]
    wrong += [] if named else ["no line named the dead process"]
    wrong += ["a C++ stack was printed"] if "stack trace" in log else []
    return f"killed {victim} after step {logged(workdir)}, the other ended with {code} in {seconds:.1f} s", wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--workdir", type=Path, default=Path("runs/kill_peer"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    whole, killed = args.workdir.resolve() / "whole", args.workdir.resolve() / "killed"
    data = args.workdir.resolve() / "data"  # of both runs, so that only training is under test
    command = [sys.executable, "-m", "experiments.digits", "--stores", f"--workdir={data}"]
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    finish(whole, args.steps)
    shutil.rmtree(killed, ignore_errors=True)
    random.seed(args.seed)
    problems = []
    for number in range(args.rounds):
        what, wrong = kill_one(killed, args.steps, number % 2, random.uniform(0, 3))
        print(f"{number + 1:>3}  {what}  {'; '.join(wrong) or 'good'}", flush=True)
        problems += wrong
    finish(killed, args.steps)
    expected, found = losses(whole), losses(killed)
    different = [step for step in expected if abs(expected[step] - found.get(step, 1e9)) > 1e-6]
    problems += [f"losses differ at steps {different}"] if different else []
    print(json.dumps({"rounds": args.rounds, "steps": len(found), "problems": problems}))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
