"""Command lines: gin files become checked configs, and whatever is wrong becomes one line that names it."""

import dataclasses
import resource
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from absl import flags

from chameleon_jax import cli, config_help
from chameleon_jax.configs import MeshConfig, NumericsConfig, PretrainConfig
from chameleon_jax.errors import ConfigError
from chameleon_jax.files import atomic_write, new_folder

ROOT = Path(__file__).parents[1]

RUN = """
STEPS = %gin.REQUIRED
PretrainConfig.model = @TransformerConfig()
PretrainConfig.data = @DataConfig()
PretrainConfig.train = @TrainConfig()
TransformerConfig.d_model = 64
DataConfig.stores = [@a/StoreConfig(), @b/StoreConfig()]
a/StoreConfig.path = 'x'
b/StoreConfig.path = 'y'
b/StoreConfig.weight = 2
TrainConfig.steps = %STEPS
TrainConfig.batch_size = 4
"""


@pytest.fixture
def command(tmp_path, capsys):
    """command(*flags) -> (exit code, config that main got, standard error)."""
    (tmp_path / "run.gin").write_text(RUN)

    def run(*flags, file="run.gin"):
        got = []
        argv = [f"--gin_file={tmp_path / file}", f"--workdir={tmp_path}", *flags]
        with pytest.raises(SystemExit) as stop:
            cli.run(
                lambda config, args: got.append((config, args)), PretrainConfig, "Do it.\n\nExamples:\n  x", argv=argv
            )
        return stop.value.code, got[0] if got else None, capsys.readouterr().err

    return run


def test_a_gin_file_and_flags_make_the_config_that_python_makes(command):
    code, (config, args), _ = command(
        "--gin.STEPS=3", "--gin.TransformerConfig.norm_order=swin", "--gin.TrainConfig.batch_size=8"
    )
    assert code == 0
    assert (config.train.steps, config.train.batch_size, config.model.norm_order) == (3, 8, "swin")
    assert [(s.path, s.weight) for s in config.data.stores] == [("x", 1.0), ("y", 2)]
    assert PretrainConfig.from_dict(config.to_dict()) == config
    assert "TransformerConfig.d_model = 64" in args.gin.given
    assert "DataConfig.stage2_start = 0.8" in args.gin.operative  # defaults are part of what was used


def test_a_value_of_an_inner_config_needs_no_line_that_uses_it(command):
    config = command("--gin.STEPS=3", "--gin.OptimConfig.eps=1", "--gin.NumericsConfig.round_norms=True")[1][0]
    assert config.optim.eps == 1 and config.model.numerics.round_norms and config.init_from is None
    _, (config, args), _ = command("--gin.STEPS=3", "--gin.InitConfig.workdir=elsewhere")
    assert config.init_from.workdir == "elsewhere" and "PretrainConfig.init_from = @InitConfig()" in args.gin.given


def test_later_bindings_win_and_state_does_not_leak_between_calls(command):
    assert command("--gin.STEPS=3", "--gin.STEPS=5")[1][0].train.steps == 5
    assert command("--gin.STEPS=3")[1][0].train.steps == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "STEPS"),
        (("--gin.STEPS=3", "--gin.TrainCofig.steps=1"), "unknown config 'TrainCofig' (did you mean 'TrainConfig'?)"),
        (("--gin.STEPS=3", "--gin.TrainConfig.step=1"), "TrainConfig has no field 'step' (did you mean 'steps'?)"),
        (("--gin.STEPS=3", "--gin.c/StoreConfig.path=1"), "'c/StoreConfig.path' is not used"),
        (("--gin.STEPS=3", "--gin.STEP=5"), "'STEP' is not used"),
        (("--gin.STEPS=3", "--gin.VQConfig.codes=1"), "'VQConfig.codes' is not used"),
        (("--gin.STEPS=3", "--gin.steps=5"), "'steps' alone is no gin name: write --gin.TrainConfig.steps=..."),
        (("--gin.STEPS=3", "--steps=5"), "unknown argument '--steps=5': set it with --gin.TrainConfig.steps=5"),
        (("--gin.STEPS=3", "--learning-rate", "5"), "set it with --gin.OptimConfig.learning_rate=..."),
        (("--gin.STEPS=3", "--seed=5"), "set it with --gin.TrainConfig.seed=5 or --gin.DataConfig.seed=5"),
        (("--gin.STEPS=3", "--gin.TransformerConfig.d_model=abc"), "d_model: expected int, got 'abc'"),
        (("--gin.STEPS=0",), "steps must be at least 1, got 0"),
        (("--gin.STEPS=3", "--gin.PretrainConfig.model=1"), "expected TransformerConfig, got 1"),
        (("--gin.STEPS=3", "--gin.TransformerConfig.norm_order=swim"), "one of 'pre', 'swin', got 'swim'"),
        (("--gin.STEPS=3", "--gin.DataConfig.stores=[]"), "stores is empty"),
        (("--gin.STEPS=3", "--gin.TrainConfig.batch_size"), "has no '='"),
        (("--gin.STEPS=3", "--gin_file=run.gni"), "gin file 'run.gni' does not exist"),
        (("--gin.STEPS=3", "--workdri=x"), "unknown argument '--workdri=x' (did you mean '--workdir'?)"),
    ],
)
def test_mistakes_exit_2_with_one_line_that_names_them(command, flags, message):
    code, got, error = command(*flags)
    assert (code, got) == (2, None)
    assert message in error
    assert error.startswith("error: ") and error.count("\n") == 1


def test_a_missing_value_says_which_binding_to_set(command, tmp_path):
    (tmp_path / "short.gin").write_text(RUN.replace("TrainConfig.batch_size = 4\n", ""))
    assert "TrainConfig.batch_size is not set" in command("--gin.STEPS=3", file="short.gin")[2]


@pytest.fixture
def flags_command(capsys):
    """flags_command(*argv) -> (exit code, args that main got, standard output, standard error)."""

    def add_flags(values):
        flags.DEFINE_multi_string("image", [], "a picture", flag_values=values)
        flags.DEFINE_boolean("insecure", False, "without a key", flag_values=values)
        flags.DEFINE_enum("to", "jax", ("jax", "meta"), "layout", flag_values=values)
        flags.DEFINE_integer("count", None, "how many", flag_values=values, required=True)

    def run(*argv, answer=None):
        got = []
        with pytest.raises(SystemExit) as stop:
            cli.run(
                lambda args: got.append(args) or answer,
                None,
                "Do it.",
                add_flags=add_flags,
                workdir=False,
                positional="path",
                argv=argv,
            )
        return stop.value.code, got[0] if got else None, *capsys.readouterr()

    return run


def test_flags_are_repeated_switched_and_mixed_with_an_argument(flags_command):
    code, args, *_ = flags_command("--image=a.png", "some/path", "--image", "b.png", "--insecure", "--count", "3")
    assert (code, args.image, args.insecure, args.count, args.path) == (0, ["a.png", "b.png"], True, 3, "some/path")
    _, args, *_ = flags_command("--count=4", "--noinsecure")  # nothing is left of the call before
    assert (args.image, args.insecure, args.count, args.path) == ([], False, 4, None)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "--count is required"),
        (("--count",), "Missing value for flag --count"),
        (("--count=3", "--cuont=3"), "unknown argument '--cuont=3' (did you mean '--count'?)"),
        (("--count=3", "--coun=3"), "unknown argument '--coun=3' (did you mean '--count'?)"),
        (("--count=three",), "--count=three"),
        (("--count=3", "--to=mta"), "one of <jax|meta> (did you mean 'meta'?)"),
        (("--count=3", "--insecure=perhaps"), "--insecure=perhaps"),
        (("--count=3", "here", "there"), "unknown argument 'there'"),
        (("--count=3", "--gin.TrainConfig.steps=1"), "unknown argument '--gin.TrainConfig.steps=1'"),
        (("--count=3", "--jax_enable_x46=1"), "(did you mean '--jax_enable_x64'?)"),
        (("--count=3", "--jax_enable_x64=perhaps"), "--jax_enable_x64=perhaps"),
    ],
)
def test_mistakes_in_flags_exit_2_with_one_line(flags_command, argv, message):
    code, args, _, error = flags_command(*argv)
    assert (code, args) == (2, None)
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_the_code_that_main_returns_is_the_exit_code(flags_command):
    assert flags_command("--count=1", answer=75)[0] == 75


def test_ctrl_c_exits_130_without_a_traceback(tmp_path, capsys):
    def stopped(args):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        cli.run(stopped, None, "Do it.", argv=[f"--workdir={tmp_path}"])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_flags_of_jax_reach_its_config_in_every_command_of_a_process(flags_command):
    before = jax.config.jax_default_matmul_precision
    try:
        for precision in ("highest", "float32"):
            code, args, *_ = flags_command("--count=1", f"--jax_default_matmul_precision={precision}")
            assert (code, jax.config.jax_default_matmul_precision) == (0, precision)
            assert not hasattr(args, "jax_default_matmul_precision")
    finally:
        jax.config.update("jax_default_matmul_precision", before)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_has_the_docstring_and_the_flags_of_this_command_alone(flags_command, flag):
    code, args, out, error = flags_command(flag)
    assert (code, args, error) == (0, None, "")
    assert out.startswith("Do it.\n") and "--to: <jax|meta>: layout (default: jax)" in out
    assert "--jax_enable_x64" not in out and "--verbosity" not in out


def test_help_has_every_field_below_the_config_with_its_default_and_what_is_said_of_it(capsys):
    with pytest.raises(SystemExit):
        cli.run(print, PretrainConfig, "Do it.", argv=["--help"])
    lines = capsys.readouterr().out.splitlines()
    shown = {line.strip().removeprefix("--gin.").partition("=")[0] for line in lines if "--gin." in line}
    classes = config_help.reachable(PretrainConfig)
    assert NumericsConfig in classes
    assert shown >= {f"{cls.__name__}.{field.name}" for cls in classes for field in dataclasses.fields(cls)}
    for line in (
        "--gin.TrainConfig.batch_size=...  int; rows of seq_len tokens in one optimiser step, over all devices",
        "--gin.OptimConfig.schedule=exponential  exponential, cosine or constant",
        "--gin.LossConfig.weights={}  map of str to float; By modality; of one not named, the vocabulary's.",
        "--gin.TransformerConfig.untied=()  list of mlp, norms or attention; Parts with parameters for each modality of the",
        "--gin.DataConfig.stores=[@StoreConfig()]  required",
    ):
        assert f"    {line}" in lines
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("[a-z]*.py")), ids=lambda p: p.stem)
def test_help_needs_no_jax(path):
    code = f"""
import runpy, sys
sys.argv = ["x", "--help"]
try:
    runpy.run_path({str(path)!r}, run_name="__main__")
except SystemExit as ended:
    assert not ended.code
assert "jax" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def test_a_command_shows_its_own_messages_plainly_and_only_warnings_of_libraries(tmp_path):
    code = f"""
import logging as standard
from absl import logging
from chameleon_jax import cli

def main(args):
    exec(compile("logging.info('100 %% of %s', 'ours')", {str(ROOT / "experiments" / "command.py")!r}, "exec"))
    logging.info("of a library through absl")
    standard.getLogger("orbax").info("of a library")
    standard.getLogger("orbax").warning("a warning of a library")

cli.run(main, None, "Do it.", workdir=False)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "100 % of ours\na warning of a library\n"


def test_programming_errors_keep_their_traceback(tmp_path):
    def broken(args):
        raise KeyError("mine")

    with pytest.raises(KeyError):
        cli.run(broken, None, "Do it.", argv=[f"--workdir={tmp_path}"])


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("[a-z]*.py")), ids=lambda p: p.stem)
def test_every_entry_point_helps_with_examples_and_is_thin(path):
    text = path.read_text()
    if "cli.run(" not in text:
        pytest.skip("not an entry point")
    assert "Examples:\n  python -m experiments." in text
    assert len(text.splitlines()) < 100


def test_only_gin_utils_imports_gin():
    importers = [p.name for p in (ROOT / "chameleon_jax").rglob("*.py") if "import gin\n" in p.read_text()]
    assert importers == ["gin_utils.py"]


def test_modules_stay_below_500_lines():
    long = [str(p) for p in ROOT.glob("*/**/*.py") if ".venv" not in p.parts and len(p.read_text().splitlines()) > 500]
    assert long == []


def test_a_mesh_is_told_by_its_axes_and_those_not_named_are_one():
    assert cli.parse_mesh("tensor=8") == MeshConfig(data=1, fsdp=1, tensor=8)
    assert cli.parse_mesh("data=2,tensor=-1") == MeshConfig(data=2, fsdp=1, tensor=-1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tensr=8", r"no axis 'tensr' \(did you mean 'tensor'\?\)"),
        ("tensor", "tensor needs a number of devices"),
        ("tensor=two", "tensor needs a number of devices"),
        ("tensor=0", "axes must be positive or -1"),
        ("data=-1,tensor=-1", "only one axis may be -1"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        cli.parse_mesh(text)


def ends(main, *flags):
    with pytest.raises(SystemExit) as stop:
        cli.run(main, None, "Do it.", argv=flags)
    return stop.value.code


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path, capsys):
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(args):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, kept[1]))
        try:
            atomic_write(tmp_path / "large", b"x" * 2000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, kept)

    def full(args):
        with new_folder(tmp_path / "new"), open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")

    assert ends(fill, f"--workdir={tmp_path}") == 2
    assert f"error: {tmp_path / 'large'} cannot be written (File too large): make room" in capsys.readouterr().err
    assert ends(full, f"--workdir={tmp_path}") == 2
    assert (
        f"error: {tmp_path / 'new'} cannot be written (No space left on device): make room" in capsys.readouterr().err
    )
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_a_folder_is_the_users_where_the_command_line_names_it(tmp_path, capsys):
    taken = tmp_path / "taken"
    taken.write_text("a file")

    def make(args):
        (taken / "below").mkdir()

    for named in (taken, taken / "below"):
        assert ends(make, f"--workdir={named}") == 2
        assert "taken/below cannot be used (Not a directory): " in capsys.readouterr().err
    with pytest.raises(NotADirectoryError):
        cli.run(make, None, "Do it.", argv=[f"--workdir={tmp_path / 'another'}"])


def test_no_name_in_an_error_commands_a_terminal_or_makes_a_second_line(capsys):
    def unusable(args):
        raise ConfigError("source 'a\x1b[2J\nb' is missing")

    assert ends(unusable, "--workdir=x") == 2
    assert capsys.readouterr().err == "error: source 'a·[2J⏎b' is missing\n"
