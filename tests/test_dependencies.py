"""What the package imports is declared, and what only some commands need is imported only there."""

import ast
import functools
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for room in ("chameleon_jax", "experiments") for path in (ROOT / room).rglob("*.py"))
# Packages of the extras, and where alone they may be imported.
EXTRAS = {
    "torch": "chameleon_jax/convert/",
    "pyyaml": "chameleon_jax/convert/",
    "fastapi": "chameleon_jax/serving/",
    "pydantic": "chameleon_jax/serving/",
    "starlette": "chameleon_jax/serving/",
    "uvicorn": "chameleon_jax/serving/",
    "prometheus-client": "chameleon_jax/serving/",
    "wandb": "chameleon_jax/training/telemetry.py",
    "espeakng-loader": "chameleon_jax/demo/espeak.py",
    "matplotlib": "chameleon_jax/compile_report/picture.py",
}
# Core packages that take long to import, or that only some commands need.
LAZY = ("sklearn", "tensorflow_datasets", "pyarrow", "torch", "tensorflow", "wandb")


def names(requirements):
    return {re.match(r"[\w.-]+", line)[0].lower() for line in requirements if re.match(r"\w", line)}


packages = functools.cache(importlib.metadata.packages_distributions)


def distributions(file):
    """Names of the packages outside this project and the standard library that a file imports anywhere in it."""
    installed = packages()
    for node in ast.walk(ast.parse(file.read_text())):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules = [node.module]
        for top in {module.partition(".")[0] for module in modules}:
            if top not in sys.stdlib_module_names and top not in ("chameleon_jax", "experiments"):
                yield {name.lower().replace("_", "-") for name in installed.get(top, [top])}


CORE = names((ROOT / "requirements.txt").read_text().splitlines())


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_import_is_declared(file):
    where = str(file.relative_to(ROOT))
    allowed = CORE | {name for name, place in EXTRAS.items() if where.startswith(place)}
    undeclared = [found for found in distributions(file) if not found & allowed]
    assert not undeclared


def test_every_requirement_is_imported_and_pinned():
    imported = {name for file in FILES for found in distributions(file) for name in found}
    assert imported >= CORE
    pinned = names((ROOT / "constraints.txt").read_text().splitlines())
    assert pinned >= CORE


def test_the_extras_are_those_of_the_project_file():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    declared = set().union(*(names(extras[name]) for name in ("wandb", "convert", "serve", "demo", "notebook")))
    assert declared == set(EXTRAS)


def test_all_modules_log_by_absl():
    """Only cli, which says how messages look, also knows Python's own logging."""
    users = [file.name for file in FILES if re.search(r"^\s*(import logging|from logging)\b", file.read_text(), re.M)]
    assert users == ["cli.py"]


def test_importing_everything_touches_no_device_and_no_package_that_only_some_commands_need():
    code = f"""
import importlib, pkgutil, sys, chameleon_jax
for module in pkgutil.walk_packages(chameleon_jax.__path__, "chameleon_jax."):
    importlib.import_module(module.name)
assert not (found := set({LAZY!r}) & sys.modules.keys()), found
import jax
assert not jax._src.xla_bridge._backends, "a device was touched"
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
