"""Notebooks run from top to bottom, at the size that they have without a trained run; their first cell installs what they need."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def sources(path):
    cells = json.loads(path.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    names = {}
    for source in ["import jax", *sources(path)[1:]]:
        exec(compile(source, str(path), "exec"), names)
    assert len(names["residual"]) == names["config"].n_layers == len(names["by_layer"]["residual_rms"])
    assert len(names["plt"].get_fignums()) == 3
    names["plt"].close("all")


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """The interpreter of a new environment that has the packages of this one, JAX among them, but not this project."""
    folder = tmp_path_factory.mktemp("runtime")
    venv.create(folder, with_pip=True)
    inside = subprocess.run(
        [folder / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    there = folder / "there"
    there.mkdir()
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if "chameleon" not in package.name:
            (there / package.name).symlink_to(package)
    (Path(inside) / "there.pth").write_text(f"{there}\n")
    return folder / "bin" / "python"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_of_a_lone_file_installs_beside_the_jax_that_is_there(path, runtime, tmp_path):
    import jax

    lone = tmp_path / path.name
    shutil.copy(path, lone)
    (tmp_path / "cell.py").write_text(sources(lone)[0])
    alone = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CHAMELEON_SOURCE")}

    def run(**more):
        command = [runtime, "cell.py"]
        return subprocess.run(command, cwd=tmp_path, env=alone | more, capture_output=True, text=True)

    told = run()
    assert told.returncode == 1 and "Set SOURCE above to the address of the repository" in told.stderr
    clone = tmp_path / "source"  # a copy: building leaves files in the folder
    for folder in ("chameleon_jax", "experiments", "gin_configs"):
        shutil.copytree(ROOT / folder, clone / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("setup.py", "pyproject.toml", "requirements.txt", "README.md"):
        shutil.copy(ROOT / file, clone)
    done = run(CHAMELEON_SOURCE=str(clone))
    assert done.returncode == 0, done.stderr
    where, _, version = done.stdout.partition("; JAX ")
    assert Path(where).is_relative_to(runtime.parents[1]) and version.startswith(f"{jax.__version__} on [Cpu")
    code = "import jax, numpy; print(jax.__file__)"
    kept = subprocess.run([runtime, "-c", code], env=alone, capture_output=True, text=True, check=True).stdout
    assert Path(kept.strip()).is_relative_to(runtime.parents[1] / "there")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_in_a_clone_the_first_cell_uses_the_clone(path, tmp_path):
    folder = tmp_path / "clone" / "notebooks"
    folder.mkdir(parents=True)
    (tmp_path / "clone" / "chameleon_jax").symlink_to(ROOT / "chameleon_jax")
    (tmp_path / "clone" / "requirements.txt").write_text("numpy\n")
    (folder / "cell.py").write_text(sources(path)[0])
    done = subprocess.run([sys.executable, "cell.py"], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{tmp_path}/clone/chameleon_jax; JAX ")
