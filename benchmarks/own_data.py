"""Eight forms of the same 200 captioned pictures, each through the commands that `experiments.new` prints, to a served picture.

No file is edited: what is run is what was printed, and --port. One line a form: pictures given, counted and tokenised, the time of
each command in seconds, and what came out.

Examples:
  python benchmarks/own_data.py                                    # all eight, about ten minutes on one core
  python benchmarks/own_data.py --form=csv --form=pairs --minutes=1
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image

from tests.own_data_forms import FORMS, records

PREFIX = "python -m experiments."


def whole_way(form: str, folder: Path, minutes: float, count: int = 200) -> dict[str, object]:
    """Run every printed command on this form; returns what happened. Raises RuntimeError with the output of one that fails."""
    given = records(count)
    folder.mkdir(parents=True)
    path = FORMS[form][0](folder / "data", given)
    # Programs of one form are those of the next.
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }
    environment = cache | dict(os.environ)
    work = folder / "run"
    said = _run(f"{PREFIX}new --data={shlex.quote(str(path))} --workdir={work} --minutes={minutes}", environment)
    printed = [line for line in said.splitlines() if line.startswith(PREFIX)]
    result: dict[str, object] = {"form": form, "given": count, "counted": int(re.search(r"([\d,]+) pictures", said)[1])}
    estimated = re.findall(r"# about (?:(\d+)m)?(\d+)s", said)
    for line, (whole, rest) in zip(printed[:3], estimated, strict=True):
        begin = time.monotonic()
        told = _run(line, environment)
        name = line.removeprefix(PREFIX).split()[0]
        result[name] = round(time.monotonic() - begin, 1)
        result[f"{name} estimated"] = 60 * int(whole or 0) + int(rest)
        if name == "tokenize":
            result["tokenised"] = int(re.search(r"text, ([\d,]+) image", told)[1].replace(",", ""))
    begin = time.monotonic()
    _run(printed[3], environment)
    result["generate"] = round(time.monotonic() - begin, 1)
    drawn = sorted((work / "out").glob("*.png"))
    result["drawn"] = "x".join(map(str, Image.open(drawn[0]).size))
    result["served"] = _served(printed[4], environment)
    return result


def _run(command: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, *shlex.split(command)[1:]], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{command}\nended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def _served(command: str, environment: dict[str, str]) -> str:
    """The size of a picture that the printed server answers with; the server is ended as a person would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, *shlex.split(command)[1:], f"--port={port}"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        asked = json.dumps({"prompt": "a red bar on the left", "n": 1}).encode()
        url, headers = f"http://127.0.0.1:{port}/v1/images/generations", {"Content-Type": "application/json"}
        end = time.monotonic() + 240
        while True:
            try:
                with urllib.request.urlopen(urllib.request.Request(url, asked, headers), timeout=200) as reply:
                    answer = json.loads(reply.read())
                break
            except urllib.error.URLError as error:  # not there yet, or 503 while it compiles
                if server.poll() is not None or time.monotonic() > end or getattr(error, "code", 503) != 503:
                    raise
                time.sleep(0.5)
    finally:
        server.terminate()
        server.wait(60)

    return "x".join(map(str, Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"]))).size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", action="append", choices=list(FORMS), help="one of the forms; by default all")
    parser.add_argument("--minutes", type=float, default=0.5, help="what experiments.new is told")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for number, form in enumerate(args.form or FORMS):
            print(json.dumps(whole_way(form, Path(folder) / f"{number}", args.minutes)), flush=True)


if __name__ == "__main__":
    main()
