"""Real processes: gloo on the CPU, each with its share of eight simulated devices."""

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKER = "tests/multiprocess/worker.py"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def environment(devices):
    # The flags of the suite, and devices for processes, whom its setting of `jax_num_cpu_devices` does not reach.
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture(scope="session")
def start():
    """start([argv, ...], devices) -> a Popen for each argv, with stdout and stderr together; killed if still there at the end."""
    started = []

    def start(argvs, devices=4):
        new = [
            subprocess.Popen(
                [sys.executable, *map(str, argv)], cwd=ROOT, env=environment(devices), text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
            for argv in argvs
        ]  # fmt: skip
        started.extend(new)
        return new

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def ended():
    """ended(processes, timeout) -> [(exit code, output), ...], read side by side so that no pipe fills up."""

    def ended(processes, timeout=900):
        outputs = [None] * len(processes)

        def read(number, process):
            outputs[number] = process.communicate()[0]

        threads = [threading.Thread(target=read, args=item, daemon=True) for item in enumerate(processes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout)
            assert not thread.is_alive(), f"still running: {[p.pid for p in processes if p.poll() is None]}"
        return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]

    return ended


@pytest.fixture(scope="session")
def by_hand():
    """by_hand(processes) -> the flags of each process for one launch on this machine."""

    def flags(processes):
        port = free_port()
        return [
            [f"--coordinator=localhost:{port}", f"--num_processes={processes}", f"--process_id={process}"]
            for process in range(processes)
        ]

    return flags


@pytest.fixture(scope="session")
def work(start, ended, by_hand, tmp_path_factory):
    """work(count, [(what, config, workdir), ...]) -> for each process the results of all jobs, done in one start."""

    def work(count, jobs):
        file = tmp_path_factory.mktemp("jobs") / "jobs"
        file.write_text(json.dumps([{"do": do, "config": c.to_dict(), "workdir": str(w)} for do, c, w in jobs]))
        flags = by_hand(count) if count > 1 else [[]]
        for code, output in ended(start([[WORKER, f"--jobs={file}", *f] for f in flags], 8 // count)):
            assert code == 0, output
        return [json.loads(file.with_suffix(f".result-{process}").read_text()) for process in range(count)]

    return work
