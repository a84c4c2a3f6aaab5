"""experiments.serve as a process: who may reach it, what it answers, and how it ends."""

import concurrent.futures
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import jax
import pytest

from chameleon_jax import cli
from chameleon_jax.checkpoints.checkpointer import Checkpointer
from chameleon_jax.configs import CheckpointConfig, ServeConfig
from chameleon_jax.serving import startup
from experiments import serve
from tests.tiny_run import make_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run as training leaves it, with a context long enough for an answer to take a while."""
    folder, run = tmp_path_factory.mktemp("lizard") / "model", make_run(context=512)
    checkpointer = Checkpointer(folder / "checkpoints", CheckpointConfig())
    params = jax.tree.map(lambda leaf: jax.device_put(leaf, jax.devices()[0]), run.params)
    checkpointer.save(3, {"params": params}, {"config": {"model": run.model.to_dict()}})
    checkpointer.close()
    run.bundle.save(folder / "tokenizer")
    return folder


@contextlib.contextmanager
def command(workdir, *flags, **environment):
    """The process; it is killed if the test does not end it."""
    arguments = [sys.executable, "-m", "experiments.serve", f"--workdir={workdir}", *flags]
    clean = {name: value for name, value in os.environ.items() if name != "CHAMELEON_API_KEY"}
    process = subprocess.Popen(
        arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**clean, "JAX_PLATFORMS": "cpu", **environment}
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def listening_url(process):
    """The address that the first line names, when nothing is loaded yet."""
    return re.search(r"listening on (http://[^;]+);", process.stderr.readline())[1]


def url_of(process):
    """The address that the log names."""
    for line in process.stderr:
        if re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d serving ", line):
            return line.split()[-1]
    raise AssertionError("the server did not start")


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--host=0.0.0.0"], "host 0.0.0.0 can be reached from other machines: set CHAMELEON_API_KEY"),
        (["--host=::"], "can be reached from other machines"),
        (["--host=0.0.0.0", "--api_key="], "the API key is empty"),
        (["--port=99999"], "port must be in 0..65535"),
        (["--port=1", "--host=203.0.113.1", "--insecure"], "cannot listen on 203.0.113.1:1"),
        (["--slots=0"], "slots must be at least 1"),
        (["--weights=fp4"], "EngineConfig.weights"),
        (["--gin.ServeConfig.prot=1"], "did you mean 'port'?"),
        (["--workdir=/nowhere"], "/nowhere is not the workdir of a run"),
        (["--format=caht"], "did you mean 'chat'?"),
        (["--mode=imgae"], "did you mean 'image'?"),
        (["--workdir=lizard=/nowhere"], "/nowhere is not the workdir of a run"),
        (["--cors_origin=*"], "set CHAMELEON_API_KEY"),
        (["--cors_origin=example.org"], "cors_origin must be like"),
        (["--max_tokens=-1"], "max_tokens must be at least 0"),
    ],
)
def test_a_server_that_should_not_start_does_not(workdir, monkeypatch, capsys, flags, told):
    monkeypatch.delenv("CHAMELEON_API_KEY", raising=False)
    with pytest.raises(SystemExit) as stop:
        argv = [f"--workdir={workdir}", *([] if "port" in flags[0] else ["--port=0"]), *flags]
        cli.run(serve.main, ServeConfig, serve.__doc__, add_flags=serve._flags, workdir=False, argv=argv)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith("error: ") and told in line


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Flags by which a process after the first one need not compile all again."""
    folder = tmp_path_factory.mktemp("compiled")
    return ["--slots=2", f"--jax_compilation_cache_dir={folder}", "--jax_persistent_cache_min_compile_time_secs=0"]


def test_what_cannot_be_served_is_told_before_it_is_loaded(workdir, tmp_path, capsys):
    def told(*flags):
        with pytest.raises(SystemExit) as stop:
            cli.run(serve.main, ServeConfig, serve.__doc__, add_flags=serve._flags, workdir=False, argv=flags)
        (line,) = capsys.readouterr().err.splitlines()
        assert stop.value.code == 2
        return line

    twin = tmp_path / "lizard" / "model"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = told(f"--workdir={workdir}", f"--port={port}")
        assert f"cannot listen on 127.0.0.1:{port}" in said and f"another with --port={port + 1}" in said
    assert "is not the workdir of a run" in told(f"--workdir={workdir / 'tokenizer'}", "--port=0")
    shutil.copytree(workdir.parent, tmp_path / "lizard")
    name = workdir.parent.name
    line = told(f"--workdir={workdir}", f"--workdir={name}={twin}", "--port=0")
    assert "two models are called the same" in line
    assert "given twice" in told(f"--workdir={workdir}", f"--workdir={workdir}", "--port=0")


def test_it_listens_compiles_answers_and_drains(workdir, compiled):
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 500,
        "stream": True,
        "mode": "image",
        "max_images": 20,
    }
    with command(workdir, "--port=0", *compiled, CHAMELEON_API_KEY="secret") as process:
        url = listening_url(process)
        client = httpx.Client(base_url=url, headers={"authorization": "Bearer secret"}, timeout=60)
        health = client.get("/health")
        assert health.status_code == 503 and health.json()["status"] == "compiling"
        assert httpx.get(url + "/v1/models").status_code == 401
        (model,) = client.get("/v1/models").json()["data"]
        assert model["id"] == workdir.parent.name and model["chameleon"]["context"] == 512
        assert client.get("/").status_code == 200
        waited = client.post("/v1/chat/completions", json=body | {"mode": "text", "max_tokens": 3, "stream": False})
        assert waited.status_code == 200 and waited.json()["usage"]["completion_tokens"] == 3
        assert url_of(process) == url
        assert client.get("/health").json()["status"] == "ok"
        started = time.monotonic()
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            first = next(line for line in lines if '"images"' in line or '"finish_reason":"' in line)
            assert '"images"' in first and time.monotonic() - started < 1
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]" and not any('"error"' in line for line in rest)
        assert process.wait(30) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(url + "/health")


def test_a_signal_ends_it_while_it_compiles(workdir):
    with command(workdir, "--port=0") as process:
        url = listening_url(process)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            body = {"prompt": "hi", "max_tokens": 3}
            waiting = pool.submit(httpx.post, url + "/v1/completions", json=body, timeout=60)
            while httpx.get(url + "/metrics").text.count("chameleon_open_requests 1.0") == 0:
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            assert waiting.result().status_code == 503 and "the server is stopping" in waiting.result().text
        assert process.wait(10) == 0
        assert "serving " not in process.stderr.read()


def test_a_checkpoint_that_cannot_be_read_ends_it_with_a_line(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "model")
    file = max((tmp_path / "model" / "checkpoints").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    file.write_bytes(bytes(file.stat().st_size))
    with command(tmp_path / "model", "--port=0") as process:
        *before, last = process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == 2 and last.startswith("error: no step in"), last
    assert not [line for line in before if line.startswith(("error: ", "Exception ignored", "Task exception"))]


def test_streams_that_do_not_end_in_time_are_told(workdir, compiled):
    with command(workdir, "--port=0", "--gin.ServeConfig.drain_seconds=0.1", *compiled) as process:
        url = url_of(process)
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 500, "stream": True}
        body |= {"mode": "image", "max_images": 64, "image_temperature": 1, "n": 8}
        with httpx.stream("POST", url + "/v1/chat/completions", json=body, timeout=60) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: {")
            started = time.monotonic()
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert "the server is stopping" in rest[-2] and rest[-1] == "data: [DONE]"
        assert time.monotonic() - started < 20
        assert process.wait(30) == 0


def test_models_are_named_by_their_folder_or_as_told():
    given = ["/runs/emoji/model", "/runs/chameleon", "small=runs/a/model", "/runs/b=c/model"]
    assert list(startup.name_models(given, "").values()) == ["emoji", "chameleon", "small", "b=c"]
    assert startup.name_models(["/runs/emoji/model"], "told") == {"/runs/emoji/model": "told"}


def test_a_folder_that_looks_like_a_name_and_a_folder_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=3").mkdir()
    assert startup.name_models(["lr=3", "wd=3"], "") == {"lr=3": "lr=3", "3": "wd"}
