"""What every entry point shares: flags, gin, logging, and errors as one line.

`run(main, ConfigClass, __doc__)` calls `main(config, args)`. Exit codes: 0 done, 2 the user can mend it (one line says how), 75
stopped by a signal with everything saved: run the same command again. Anything else keeps its traceback.

A command's flags live in a `FlagValues` of their own, made for each call, so one process can run several commands. Flags that it
does not know go to absl's global ones, which are absl's and, as --jax_*, JAX's.
"""

from __future__ import annotations

import difflib
import errno
import functools
import logging as standard_logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from absl import app, flags, logging

from chameleon_jax import config_help
from chameleon_jax.commands import EXPERIMENTS, as_called
from chameleon_jax.config_base import Config
from chameleon_jax.configs import MeshConfig
from chameleon_jax.errors import ChameleonError, ConfigError, did_you_mean
from chameleon_jax.progress import printable

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141
# Of a folder or a disk that a user has chosen. A file that is missing may be our own mistake, and keeps its traceback.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PLACES = (*_FULL, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM)
# These may be our own mistakes too: they are the user's where the command line names the place, or a folder that it is in.
_NAMED_PLACES = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR)

_OURS = (f"{Path(__file__).resolve().parent}{os.sep}", f"{EXPERIMENTS}{os.sep}")


def run(
    main: Callable[..., int | None],
    config: type[Config] | None,
    doc: str,
    *,
    add_flags: Callable[[flags.FlagValues], Any] = lambda values: None,
    workdir: bool = True,
    positional: str = "",
    config_is_optional: bool = False,
    argv: Sequence[str] | None = None,
) -> None:
    """Parse the command line, build the config from gin and call `main(config, args)`, or `main(args)` without a config class.

    `args` has a field per flag. `args.gin` has the gin text (`given`, `operative`) of the config. The one argument that is no
    flag, if the command takes one, is the field named `positional`, or None. With `config_is_optional`, `main` gets None for a
    config where no gin is given. Exits with the code that `main` returns.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    handler = logging.get_absl_handler()
    handler.setFormatter(standard_logging.Formatter("%(message)s"))
    handler.addFilter(_is_worth_showing)
    values = flags.FlagValues()
    values.set_gnu_getopt()  # flags may follow the positional argument
    _define_shared_flags(values, config, workdir)
    add_flags(values)
    flags.DEFINE_flag(_Help(doc, values, config), values)

    argv = [sys.argv[0], *argv] if argv is not None else sys.argv
    named = [arg.partition("=")[2] if arg.startswith("-") else arg for arg in argv[1:]]

    def call(args: SimpleNamespace) -> int:
        named.extend(value for value in vars(args).values() if isinstance(value, str))  # defaults too
        if config is None:
            return main(args) or 0
        from chameleon_jax import gin_utils

        if config_is_optional and not args.gin_file and not args.gin_bindings:
            return main(None, args) or 0
        args.gin = gin_utils.load(config, args.gin_file, args.gin_bindings)
        return main(args.gin.config, args) or 0

    try:
        app.run(
            call,
            argv,
            flags_parser=functools.partial(_parse, values, config=config, positional=positional),
        )
    except ChameleonError as error:
        print(f"error: {printable(as_called(str(error)))}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except BrokenPipeError:  # who read our output, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_PIPE_CLOSED)
    except OSError as error:
        if not error.filename or not (
            error.errno in _PLACES or (error.errno in _NAMED_PLACES and _is_named(error.filename, named))
        ):
            raise
        if error.errno in _FULL:
            problem = f"cannot be written ({error.strerror}): make room and run the same command again"
        else:
            problem = f"cannot be used ({error.strerror}): choose another place, or mend it"
        print(f"error: {printable(os.fsdecode(error.filename))} {problem}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def log_times() -> None:
    """Begin each line of the log with the time, for commands that run until they are stopped."""
    logging.get_absl_handler().setFormatter(standard_logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))


def define_mesh(values: flags.FlagValues, help: str = "devices over which the weights are divided") -> None:
    """--mesh=tensor=8 or --mesh=data=2,fsdp=1,tensor=-1, as a MeshConfig in `args.mesh`; None without it: one device."""
    text = f"{help}, as in tensor=8 or data=2,tensor=4; -1 takes all"
    flags.DEFINE(_MeshParser(), "mesh", None, text, flag_values=values)


def parse_mesh(text: str) -> MeshConfig:
    """The MeshConfig of "tensor=8" or "data=2,tensor=-1"; axes that are not named are 1. Raises ConfigError."""
    axes, seen = {"data": 1, "fsdp": 1, "tensor": 1}, set()
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in axes:
            raise ConfigError(
                f"--mesh={text}: no axis '{name}'{did_you_mean(name, list(axes))}; axes are data, fsdp, tensor"
            )
        if not size.removeprefix("-").isdecimal():
            raise ConfigError(
                f"--mesh={text}: {name} needs a number of devices, as in {name}=8, or -1 for all that are left"
            )
        if name in seen:
            raise ConfigError(f"--mesh={text}: axis '{name}' is given twice")
        seen.add(name)
        axes[name] = int(size)
    return MeshConfig(**axes)


def _is_named(path: str | bytes, named: Sequence[str]) -> bool:
    """Whether a path is one of these, or lies below one."""
    if not isinstance(path, str | bytes):  # as of a file that was opened by its number
        return False
    path = os.path.realpath(os.fsdecode(path))
    return any(f"{path}{os.sep}".startswith(f"{os.path.realpath(name)}{os.sep}") for name in named if name)


class _MeshParser(flags.ArgumentParser):
    def parse(self, argument: str) -> MeshConfig:
        return parse_mesh(argument)


class _Help(flags.BooleanFlag):
    """Prints the module's docstring, the flags of this command and the fields of its config, and ends the process."""

    def __init__(self, doc: str, values: flags.FlagValues, config: type[Config] | None):
        super().__init__("help", False, "show this text", short_name="h")
        self._doc, self._values, self._config = doc, values, config

    def parse(self, argument: str | bool) -> None:
        if self._parse(argument):
            print(f"{as_called(self._doc.strip())}\n\nFlags:")
            for name in self._values:
                flag = self._values[name]
                if name == flag.name:
                    default = "" if flag.default in (None, False, "", []) else f" (default: {flag.default})"
                    text = " ".join(f"--{name}: {flag.help}{default}".split())
                    print(flags.text_wrap(text, 120, "      ", "  "))
            if self._config is not None:
                print(f"\n{config_help.text(self._config)}\n")
            print("Flags of JAX (--jax_...) and of absl are taken too; --helpfull lists them.")
            sys.exit(0)


def _define_shared_flags(values: flags.FlagValues, config: type[Config] | None, workdir: bool) -> None:
    if workdir:
        text = "where everything of this run is written"
        flags.DEFINE_string("workdir", None, text, flag_values=values, required=True)
    if config is not None:
        text = "gin file; single values are set as in --gin.Config.field=1, see below"
        flags.DEFINE_multi_string("gin_file", [], text, flag_values=values)


def _parse(
    values: flags.FlagValues, argv: Sequence[str], *, config: type[Config] | None, positional: str
) -> SimpleNamespace:
    """Flags of the command to `values`, then all others to absl's global FLAGS; raises ConfigError for what neither knows."""
    bindings: list[str] = []
    try:
        program, *rest = values(argv, known_only=True)
        if config is not None:
            bindings = [arg.removeprefix("--gin.") for arg in rest if arg.startswith("--gin.")]
            rest = [arg for arg in rest if not arg.startswith("--gin.")]
        if any("jax_" in arg or arg == "--helpfull" for arg in rest):  # importing JAX takes half a second
            _define_jax_flags()
        flags.FLAGS.set_gnu_getopt()
        _, *found = flags.FLAGS([program, *rest])
    except flags.UnrecognizedFlagError as error:
        raise ConfigError(f"unknown argument '{error.flagvalue}'{_nearest(error, values, config)}") from None
    except (flags.Error, ValueError) as error:
        raise ConfigError(f"{_in_one_line(error)}{_misspelt(error, values, argv)} (see --help)") from None
    if len(found) > bool(positional):
        raise ConfigError(f"unknown argument '{found[bool(positional)]}' (see --help)")
    _set_jax_flags()
    args = SimpleNamespace(**values.flag_values_dict())
    if isinstance(getattr(args, "workdir", None), str):  # a server takes several, with names
        args.workdir = os.path.expanduser(args.workdir)
    if config is not None:
        args.gin_bindings = bindings
    if positional:
        setattr(args, positional, found[0] if found else None)
    return args


def _nearest(error: flags.UnrecognizedFlagError, values: flags.FlagValues, config: type[Config] | None) -> str:
    """What was meant: a field of the config, by its exact name, or the flag of the nearest name."""
    fields = {} if config is None else config_help.settings(config)
    if named := fields.get(error.flagname.replace("-", "_")):
        value = error.flagvalue.partition("=")[2] or "..."
        return ": set it with " + " or ".join(f"--gin.{field}={value}" for field in named[:3])
    known = [f"--{name}" for name in (*values, *flags.FLAGS)]
    return did_you_mean(f"--{error.flagname}", known) or " (see --help)"


def _misspelt(error: Exception, values: flags.FlagValues, argv: Sequence[str]) -> str:
    """Of a flag that is missing, the one that was given in its place: absl looks for what it requires first."""
    if not (missing := re.match(r"flag (--\w+)=None: ", str(error))):
        return ""
    given = {arg.partition("=")[0] for arg in argv if arg.startswith("--")} - {f"--{name}" for name in values}
    near = difflib.get_close_matches(missing[1], given, n=1, cutoff=0.6)
    return f"; '{near[0]}' is no flag" if near else ""


def _in_one_line(error: Exception) -> str:
    """absl's message, with the nearest name for a value that is none of several, and shorter for a flag that is missing."""
    text = " ".join(str(error).split()).removeprefix("flag ")
    if match := re.match(r"(--\w+)=None: ", text):
        return f"{match[1]} is required"
    if match := re.match(r"--\w+=(.*): value should be one of <(.*)>$", text):
        return text + did_you_mean(match[1], match[2].split("|"))
    if match := re.match(r"(--\w+=.*): (invalid literal for int|could not convert string to float)", text):
        return f"{match[1]}: not a {'whole ' if match[2].endswith('int') else ''}number"
    return text


@functools.cache
def _define_jax_flags() -> None:
    import jax

    jax.config.config_with_absl()


def _set_jax_flags() -> None:
    """Here and not by JAX's own callback, which absl runs for the first command of a process alone."""
    given = {
        name: flag.value for name in flags.FLAGS if name.startswith("jax_") and (flag := flags.FLAGS[name]).present
    }
    if given:
        import jax

        for name, value in given.items():
            jax.config.update(name, value)


def _is_worth_showing(record: standard_logging.LogRecord) -> bool:
    """What this project says, and warnings of the libraries below it, which would tell much else."""
    return record.levelno >= standard_logging.WARNING or os.path.realpath(record.pathname).startswith(_OURS)
