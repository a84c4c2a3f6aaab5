"""Turns gin files and bindings into one checked config object; the only file that knows gin.

Gin makes config dataclasses and nothing else. Every binding must be used, every name must exist, and nothing below
the entry points can see gin. (gin-config 0.5.0: `register` leaves direct construction alone, `configurable` would not.)
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import gin

from chameleon_jax import configs
from chameleon_jax.commands import GIN_ROOT, takes
from chameleon_jax.config_base import Config
from chameleon_jax.config_help import nested, reachable, settings
from chameleon_jax.errors import ChameleonError, ConfigError, did_you_mean

C = TypeVar("C", bound=Config)
_OPENING = ("[", "(", "{")

# Includes that are not found from the file's own root are looked for among ours.
gin.add_config_file_search_path(str(GIN_ROOT))
# Files are read as files. gin's other reader takes a path for a Python package: it fails on a folder that is importable by chance.
del gin.config._FILE_READERS[1:]


def configurables() -> dict[str, Callable[..., Config]]:
    """What a gin file can bind, by name: every config class, and the functions that make one."""

    def makes_config(found: object) -> bool:
        return (inspect.isclass(found) and issubclass(found, Config) and found is not Config) or inspect.isfunction(
            found
        )

    return dict(inspect.getmembers(configs, makes_config))


@dataclasses.dataclass(frozen=True)
class Loaded:
    """The config, and the gin text that made it: as given, and as used (defaults included)."""

    config: Config
    given: str
    operative: str


def load(root: type[C], files: Sequence[str], bindings: Sequence[str] = ()) -> Loaded:
    """Parse the files in order, then the bindings (`"TrainConfig.steps=10"`), and build `root`.

    Later bindings win. Raises ConfigError, in one line, for an unknown name (with the nearest one), an unused binding, a missing
    value, a file that does not exist and anything that `validate` refuses.
    """
    gin.clear_config(clear_constants=True)
    for made in configurables().values():
        if not _registered(made):
            gin.register(made, module="chameleon_jax")
    try:
        for file in files:
            _parse_file(file)
        for binding in bindings:
            _parse_binding(binding)
        _use_what_is_bound(root)
        gin.finalize()
        config = gin.get_configurable(root)()
    except ChameleonError as error:  # gin appends its own trace to the message
        raise ConfigError(str(error).splitlines()[0]) from None
    except (ValueError, TypeError, SyntaxError, RuntimeError, OSError) as error:
        raise ConfigError(_explain(error, root)) from None
    given, operative = gin.config_str(max_line_length=120), gin.operative_config_str(max_line_length=120)
    unused = sorted(_bound_names(given) - _bound_names(operative))
    if unused:
        if fields := settings(root).get(unused[0]):
            raise ConfigError(
                f"'{unused[0]}' alone is no gin name: write --gin." + " or --gin.".join(fields[:3]) + "=..."
            )
        raise ConfigError(
            f"gin binding '{unused[0]}' is not used by {root.__name__}; remove it or pass the config that has it"
        )
    gin.clear_config(clear_constants=True)
    return Loaded(config=config, given=given, operative=operative)


def _registered(made: Callable[..., Config]) -> bool:
    try:
        gin.get_configurable(made)
    except ValueError:
        return False
    return True


def _use_what_is_bound(root: type[Config]) -> None:
    """Let `EngineConfig.slots = 4` do without `ServeConfig.engine = @EngineConfig()`.

    A field that is not bound, and holds one config or None, is made by gin where a field of that config is bound; where it is not
    None by default, also where one of a config below it is.
    """
    for cls in reversed(reachable(root)):  # the inner first
        bound = _bound_names(gin.config_str())
        for field in dataclasses.fields(cls):
            inner = nested(cls, field.name)
            if inner is not None and f"{cls.__name__}.{field.name}" not in bound:
                makes = [inner] if field.default is None else reachable(inner)
                if any(name.startswith(f"{made.__name__}.") for made in makes for name in bound):
                    gin.parse_config(f"{cls.__name__}.{field.name} = @{inner.__name__}()")


def _parse_file(file: str) -> None:
    path = find(file).resolve()
    # `include 'gin_configs/base.gin'` is found from the folder that holds gin_configs, wherever the command is run.
    root = next((parent.parent for parent in path.parents if parent.name == "gin_configs"), Path.cwd())
    with contextlib.chdir(root):
        try:
            gin.parse_config_file(str(path))
        except UnicodeDecodeError as error:
            raise ConfigError(f"{file} is no gin file: it is not text") from error


def find(file: str) -> Path:
    """A gin file as it is named, from here or else from where the files of this project are (`gin_configs/...`).

    Raises ConfigError with the nearest name.
    """
    places = [Path(file), GIN_ROOT / file]
    for path in places:
        if path.is_file():
            return path
    near = [str(Path(file).parent / found.name) for path in places for found in path.parent.glob("*.gin")]
    raise ConfigError(f"gin file '{file}' does not exist{did_you_mean(file, near)}")


def _parse_binding(binding: str) -> None:
    line = _quoted(binding)
    try:
        gin.parse_config(line)
    except (ValueError, SyntaxError) as error:
        if not line.partition("= ")[2].startswith(_OPENING):
            raise
        raise ConfigError(
            f"--gin.{binding}: the value cannot be read; write words in it with quotes, as in "
            f'\'--gin.{line.partition(" ")[0]}=["a", "b"]\' or \'={{"a": 1}}\''
        ) from error


def _quoted(binding: str) -> str:
    """Let users write `TrainConfig.name=abc`: a value that is no gin value is taken as a string."""
    name, separator, value = binding.partition("=")
    if not separator:
        raise ConfigError(f"gin binding '{binding}' has no '='; write --gin.Config.field=value")
    value = value.strip()
    if not value.startswith(("@", "%", *_OPENING)):
        try:
            ast.literal_eval(value)
        except (ValueError, SyntaxError):
            value = repr(value)
    return f"{name.strip()} = {value}"


def _explain(error: Exception, root: type[Config]) -> str:
    """gin's and Python's messages in one line, with the nearest valid name."""
    text = " ".join(str(error).split())
    known = configurables()
    if match := re.search(r"No configurable matching '(?:[\w.]*\.)?(\w+)'", text):
        name = match.group(1)
        return f"gin names an unknown config '{name}'{did_you_mean(name, known)}"
    if match := re.search(r"Configurable '(?:[\w.]*\.)?(\w+)' doesn't have a parameter named '(\w+)'", text):
        name, field = match.groups()
        fields = list(inspect.signature(known[name]).parameters) if name in known else []
        return f"{name} has no field '{field}'{did_you_mean(field, fields)}"
    if match := re.search(
        r"(\w+)\.__init__\(\) missing \d+ required keyword-only arguments?: (.*?)(?: In call|$)", text
    ):
        name, fields = match.groups()
        first = re.findall(r"'(\w+)'", fields)[0]
        bound = {key.rpartition("/")[2].partition(".")[0] for key in _bound_names(gin.config_str())}
        others = bound - {cls.__name__ for cls in reachable(root)}
        for other, command in ((other, takes(other)) for other in sorted(others)):
            if command:
                return f"{name}.{first} is not set: the gin file binds {other}, which python -m experiments.{command} takes"
        return f"{name}.{first} is not set; bind it in a gin file or with --gin.{name}.{first}=..."
    if match := re.search(r"(\w+)/macro\.value set to `%gin\.REQUIRED`", text):
        return f"{match[1]} is required by the gin file: set it with --gin.{match[1]}=..."
    if match := re.search(r"(?:macro|binding).*?[\"'`](\w+)[\"'`].*REQUIRED|REQUIRED.*?[\"'`](\w+)[\"'`]", text, re.I):
        name = match.group(1) or match.group(2)
        return f"gin value '{name}' is required; set it with --gin.{name}=..."
    return f"gin: {text}"


def _bound_names(text: str) -> set[str]:
    return set(re.findall(r"^([\w./]+) =", text, re.M))
