"""`chameleon NAME` and `python -m experiments.NAME` are the same commands; what is installed is the package and they."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from chameleon_jax import commands

ROOT = Path(__file__).parents[1]
MODULES = sorted(path.stem for path in (ROOT / "experiments").glob("[a-z]*.py"))


@pytest.fixture(scope="module")
def chameleon(tmp_path_factory):
    """chameleon(*argv, cwd) -> the finished process of the console script, with the text of an installer's."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "chameleon"
    script.write_text("import sys\nfrom chameleon_jax.commands import main\nsys.exit(main())\n")

    def run(*argv, cwd=folder):
        command = [sys.executable, str(script), *argv]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})

    return run


def test_help_lists_every_command_with_its_line(chameleon):
    done = chameleon("--help")
    assert (done.returncode, done.stderr) == (0, "")
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ") and line[2] != " "]
    assert sorted(listed) == MODULES and listed == commands.names()
    assert listed.index("quickstart") < listed.index("tokenize") < listed.index("pretrain") < listed.index("serve")
    assert "  pretrain          Pretrain a mixed-modal transformer on token stores; run the same" in done.stdout
    assert chameleon().stdout == done.stdout and max(map(len, done.stdout.splitlines())) <= 120


def test_the_package_runs_as_the_script_does(chameleon):
    called = [sys.executable, "-m", "chameleon_jax", "--help"]
    done = subprocess.run(called, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "Usage: python -m chameleon_jax COMMAND" in done.stdout
    assert done.stdout.replace("python -m chameleon_jax", "chameleon") == chameleon("--help", cwd=ROOT).stdout
    done = subprocess.run([*called[:-1], "nwe"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.endswith("; `python -m chameleon_jax --help` lists them\n")


def test_an_unknown_command_is_told_the_nearest(chameleon):
    done = chameleon("pretrian", "--workdir=x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: 'pretrian' is no command (did you mean 'pretrain'?); `chameleon --help` lists them\n"


def test_the_version_is_that_of_the_package(chameleon):
    assert chameleon("--version").stdout.strip() == importlib.metadata.version("chameleon-jax")


def test_a_command_runs_from_any_folder_and_speaks_as_it_was_called(chameleon, tmp_path):
    done = chameleon(
        "inspect", "--gin_file=gin_configs/runs/smoke.gin", "--gin.TransformerConfig.n_layers=3", cwd=tmp_path
    )
    assert done.returncode == 0 and '"n_layers": 3' in done.stdout
    done = chameleon("pretrain", "--help")
    assert "\n  chameleon pretrain --gin_file=gin_configs/runs/smoke.gin" in done.stdout
    assert "python -m" not in done.stdout
    wrong = chameleon("quickstart", f"--workdir={tmp_path}", "--steps=-5")
    assert (wrong.returncode, wrong.stderr) == (2, "error: --steps must be at least 1, got -5\n")


def test_from_a_clone_commands_are_told_as_modules():
    command = [sys.executable, "-m", "experiments.pretrain", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "\n  python -m experiments.pretrain --gin_file=gin_configs/runs/smoke.gin" in done.stdout


def test_another_package_of_the_name_experiments_is_told_and_hides_no_command(tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").touch()
    code = "import sys\nsys.argv = sys.argv[:1] + {}\nfrom chameleon_jax.commands import main\nmain()"
    path = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}

    def run(argv):
        return subprocess.run(
            [sys.executable, "-c", code.format(argv)],
            cwd=tmp_path,
            env=path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    note = f"`python -m experiments.NAME` is another package here ({tmp_path}/experiments/__init__.py)"
    assert note in run(["--help"])
    assert "where everything of this run is written" in run(["pretrain", "--help"])
