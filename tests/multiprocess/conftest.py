"""Real processes: gloo on the CPU, each with its share of eight simulated devices."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def environment(devices):
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_llvm_disable_expensive_passes=true",
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
