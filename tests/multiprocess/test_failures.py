"""What goes wrong among processes is one line that names the process, on all of them, and nobody hangs."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from chameleon_jax.errors import ProcessError
from chameleon_jax.parallel import group as group_module
from chameleon_jax.parallel.group import Group, Relay

ROOT = Path(__file__).parents[2]
PRETRAIN = (
    "-m",
    "experiments.pretrain",
    "--gin_file=gin_configs/runs/smoke.gin",
)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def speak_to(address, text=b""):
    """As a stranger, once somebody listens there."""
    host, port = address.split(":")
    while True:
        try:
            with socket.create_connection((host, int(port))) as stranger:
                return stranger.sendall(text)
        except OSError:
            time.sleep(0.05)


def roll_call(*members, timeout=10.0):
    """Start Group(process, processes) for each of these pairs, in threads; a Group or the error of each."""
    address, found = f"localhost:{free_port()}", [None] * len(members)

    def call(place, process, processes):
        try:
            found[place] = Group(address, process, processes, timeout)
        except ProcessError as error:
            found[place] = str(error)

    threads = [threading.Thread(target=call, args=(i, *member)) for i, member in enumerate(members)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_processes_share_values_in_their_order():
    groups = roll_call((2, 3), (0, 3), (1, 3))
    found = [None] * 3

    def share(group):
        found[group.process] = [group.share(f"{word} of {group.process}", "words") for word in ("first", "second")]

    threads = [threading.Thread(target=share, args=(group,)) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[[f"{word} of {p}" for p in range(3)] for word in ("first", "second")]] * 3
    for group in groups:
        group.close()


def test_processes_that_never_start_are_named():
    errors = roll_call((0, 4), (2, 4), timeout=1.0)
    for error in errors:
        assert re.search(r"of 4 processes, number 1, 3 did not come to localhost:\d+ within 1 s", error)


def test_process_0_that_never_starts_is_named():
    (error,) = roll_call((1, 2), timeout=1.0)
    assert re.search(r"process 0 did not answer at localhost:\d+ within 1 s", error)


def test_two_processes_of_one_number_are_named():
    errors = roll_call((0, 3), (1, 3), (1, 3))
    pid = os.getpid()
    assert all(
        re.search(rf"process 1 \(host .*, pid {pid}\) and process 1 \(.*\) have the same number", e) for e in errors
    )


def test_processes_that_disagree_on_their_count_are_named():
    errors = roll_call((0, 2), (1, 3))
    assert all(re.search(r"process 1 \(.*\) was started as one of 3 processes, process 0 of 2", e) for e in errors)


def test_a_second_process_0_is_refused_and_the_first_goes_on():
    address, first = f"localhost:{free_port()}", []
    thread = threading.Thread(target=lambda: first.append(Group(address, 0, 2, 20.0)))
    thread.start()
    speak_to(address)
    with pytest.raises(ProcessError, match="is in use: another process 0, or another run, listens there"):
        Group(address, 0, 2, 1.0)
    second = Group(address, 1, 2, 10.0)
    thread.join()
    assert [member.process for member in first[0].members] == [0, 1]
    first[0].close()
    second.close()


def test_a_stranger_at_the_port_is_no_process_and_no_coordinator():
    address, found = f"localhost:{free_port()}", []
    thread = threading.Thread(target=lambda: found.append(Group(address, 0, 2, 20.0)))
    thread.start()
    speak_to(address, b"GET / HTTP/1.1\r\n\r\n")
    second = Group(address, 1, 2, 10.0)
    thread.join()
    found[0].close()
    second.close()
    with socket.create_server(("127.0.0.1", 0)) as server:
        answer = threading.Thread(target=lambda: server.accept()[0].sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
        answer.start()
        with pytest.raises(ProcessError, match=r"did not welcome process 1 .* something else listens there"):
            Group(f"127.0.0.1:{server.getsockname()[1]}", 1, 2, 2.0)
        answer.join()


STRANGE_HELLOS = (
    [], None, 5, {}, {"member": 3, "processes": 2}, {"member": [[1], "x", "y"], "processes": 2},
    {"member": [0.5, "x", 7], "processes": 2}, {"member": [True, "x", 7], "processes": 2},
    {"member": [1, 2, 3], "processes": 2}, {"member": [1, "x", "7"], "processes": 2},
    {"member": [1, "x", 7], "processes": "two"}, {"member": [2, "x", 7], "processes": 2},
    {"member": [-1, "x", 7], "processes": 2}, {"member": [1, "x"], "processes": 2},
)  # fmt: skip


def test_hellos_that_no_process_of_ours_would_say_are_dropped_and_silent_connections_hold_nobody_up():
    address, found = f"localhost:{free_port()}", []
    thread = threading.Thread(target=lambda: found.append(Group(address, 0, 2, 20.0)))
    thread.start()
    for hello in (*map(json.dumps, STRANGE_HELLOS), "[" * 10**5, "\xff"):
        speak_to(address, hello.encode() + b"\n")
    host, port = address.split(":")
    with contextlib.ExitStack() as silent:
        for _ in range(3):  # more than the time of the roll call, if each were waited for
            silent.enter_context(socket.create_connection((host, int(port))))
        second = Group(address, 1, 2, 10.0)
        thread.join()
    assert [member.process for member in found[0].members] == [0, 1]
    found[0].close()
    second.close()


def test_process_0_of_this_machine_alone_listens_to_this_machine_alone():
    for host, inside in (("localhost", True), ("127.0.0.1", True), ("0.0.0.0", False)):
        with group_module._listen(host, free_port()) as server:
            assert (server.getsockname()[0] == "127.0.0.1") == inside


def test_what_comes_together_with_the_first_message_is_not_lost():
    with contextlib.ExitStack() as sockets:
        server = sockets.enter_context(socket.create_server(("127.0.0.1", 0)))
        far = sockets.enter_context(socket.create_connection(server.getsockname()))
        near = sockets.enter_context(server.accept()[0])
        far.sendall(b'{"kind": "welcome"}\n{"kind": "ended"}\n{"kind": "good')
        line = group_module._Line(near)
        assert line.first(time.monotonic() + 10) == {"kind": "welcome"}
        assert line.early == [{"kind": "ended"}]
        far.sendall(b'bye"}\n')
        assert line.receive() == [{"kind": "goodbye"}]


def test_the_end_of_a_process_that_comes_together_with_the_welcome_ends_the_others(start, ended):
    code = "import sys, time\nfrom chameleon_jax.parallel.group import Group\nGroup(sys.argv[1], 1, 2, 20.0)\ntime.sleep(100)\n"
    with socket.create_server(("127.0.0.1", 0)) as server:
        (process,) = start([["-c", code, f"127.0.0.1:{server.getsockname()[1]}"]])
        connection, _ = server.accept()
        with connection:
            member = json.loads(connection.recv(1000))["member"]
            welcome = {"kind": "welcome", "members": [[0, "here", 1], member]}
            end = {"kind": "ended", "code": 2, "text": "process 0 ended: no data"}
            connection.sendall(b"".join(json.dumps(message).encode() + b"\n" for message in (welcome, end)))
            ((code, output),) = ended([process], timeout=60)
    assert code == 2 and output.startswith("error: process 0 ended: no data; ")


def test_what_is_too_long_to_share_is_an_error_of_its_own(monkeypatch):
    monkeypatch.setattr(group_module, "_LONGEST_LINE", 1 << 20)
    groups = roll_call((0, 2), (1, 2))
    with pytest.raises(
        ProcessError, match=r"the digits: 2 MiB are too much to send to another process \(at most 1 MiB\)"
    ):
        groups[1].share("7" * (2 << 20), "the digits")
    for group in groups:
        group.close()


@pytest.mark.parametrize("address", ["localhost", "localhost:port", ":3000", "localhost:70000"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(ProcessError, match=r"--coordinator must be HOST:PORT of process 0, got"):
        Group(address, 0, 2, 1.0)


def test_who_does_not_come_to_a_share_is_named():
    groups = roll_call((0, 2), (1, 2))
    with pytest.raises(ProcessError, match=r"the digits: waited 0 s for process 1 \(host"):
        groups[0].share(None, "the digits", timeout=0.2)
    for group in groups:
        group.close()


def test_a_relay_forwards_and_stays_open_when_the_other_end_closes():
    with socket.create_server(("127.0.0.1", 0)) as server:
        relay = Relay(f"127.0.0.1:{server.getsockname()[1]}")
        host, port = relay.address.split(":")
        with socket.create_connection((host, int(port))) as near:
            far, _ = server.accept()
            near.sendall(b"question")
            assert far.recv(100) == b"question"
            far.sendall(b"answer")
            assert near.recv(100) == b"answer"
            far.close()
            near.settimeout(0.3)
            with pytest.raises(TimeoutError):
                near.recv(1)
            near.sendall(b"to nobody")
            with pytest.raises(TimeoutError):
                near.recv(1)


def test_a_relay_hangs_up_when_its_client_does():
    with socket.create_server(("127.0.0.1", 0)) as server:
        relay = Relay(f"127.0.0.1:{server.getsockname()[1]}")
        host, port = relay.address.split(":")
        with socket.create_connection((host, int(port))):
            far, _ = server.accept()
        with far:
            far.settimeout(10.0)
            assert far.recv(1) == b""


@pytest.mark.parametrize("dead", [0, 1])
def test_the_line_of_a_killed_process_comes_though_the_others_hang(start, ended, dead):
    """Three processes without JAX; two sleep in C, as in a collective, while the third kills itself."""
    code = (
        "import os, sys, time\n"
        "from chameleon_jax.parallel.group import Group\n"
        "process, dead = int(sys.argv[2]), int(sys.argv[3])\n"
        "group = Group(sys.argv[1], process, 3, 20.0)\n"
        "group.share(None, 'ready')\n"
        "os.kill(os.getpid(), 9) if process == dead else time.sleep(100)\n"
    )
    address = f"localhost:{free_port()}"
    processes = start([["-c", code, address, process, dead] for process in range(3)])
    for process, (code, output) in enumerate(ended(processes, timeout=30)):
        assert code == (-9 if process == dead else 1)
        if process != dead:
            line = rf"error: process {dead} \(host .*, pid {processes[dead].pid}\) ended without a word at .*; run the same"
            assert re.fullmatch(line + r" command on all processes to go on\n", output)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ((), ("--gin.TrainConfig.seed=7",), r"process 1 \(host .*\) has train.seed = 7, process 0 has 0"),
        (
            (),
            ("--workdir={0}/other",),
            r"process 1 \(host .*\) sees another folder at .*/other; process 0's workdir is",
        ),
        (("--gin.MeshConfig.tensor=3",),) * 2 + (r"8 devices cannot be divided by the 3",),
    ],
    ids=["config", "workdir", "mesh"],
)
def test_processes_that_do_not_fit_together_end_before_the_first_step(
    start, ended, by_hand, tmp_path, first, second, message
):
    argvs = []
    for flags, own in zip(by_hand(2), (first, second), strict=True):
        workdir = [] if any(flag.startswith("--workdir") for flag in own) else [f"--workdir={tmp_path}"]
        argvs.append([*PRETRAIN, *flags, *workdir, *(flag.format(tmp_path) for flag in own)])
    for code, output in ended(start(argvs), timeout=120):
        assert code == 2
        (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
        assert re.search(message, line)
        assert "Traceback" not in output


@pytest.mark.slow
def test_a_killed_process_is_named_and_the_same_command_resumes_to_the_same_losses(tmp_path):
    command = [sys.executable, "benchmarks/kill_peer.py", "--rounds=1", "--steps=12", f"--workdir={tmp_path}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["rounds"] == 1 and not result["problems"]
    shutil.rmtree(tmp_path)
