"""Stopping: one signal asks, a second Ctrl-C insists, and afterwards the handlers are as before."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from chameleon_jax.training.signals import EXIT_STOPPED, StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_to_stop(number, capfd):
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
    assert f"{number.name}: stopping after this step" in capfd.readouterr().err


def test_a_second_interrupt_stops_at_once():
    with StopRequest() as stop, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGINT)


def test_a_second_sigterm_still_lets_the_save_finish():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested


def test_old_handlers_come_back():
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(ValueError), StopRequest():
        raise ValueError
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before


def test_it_does_nothing_in_another_thread():
    seen = []

    def body():
        with StopRequest() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [False]


def test_a_stopped_loop_exits_with_the_documented_code():
    code = """
import sys, time
from chameleon_jax.training.signals import EXIT_STOPPED, StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
sys.exit(EXIT_STOPPED)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        child.stdout.readline()
        child.terminate()
        assert child.wait(timeout=30) == EXIT_STOPPED == 75
