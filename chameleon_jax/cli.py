"""What every entry point shares: flags, gin, logging, and errors as one line.

`run(main, ConfigClass, __doc__)` calls `main(config, args)`. Exit codes: 0 done, 2 the user can mend it (one line says how), 75
stopped by a signal with everything saved: run the same command again. Anything else keeps its traceback.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from chameleon_jax.config_base import Config
from chameleon_jax.configs import MeshConfig
from chameleon_jax.errors import ChameleonError, ConfigError, did_you_mean

EXIT_USER_ERROR = 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise ConfigError(f"{message} (see --help)")


def run(
    main: Callable[..., int | None],
    config: type[Config] | None,
    doc: str,
    *,
    add_flags: Callable[[argparse.ArgumentParser], Any] = lambda parser: None,
    workdir: bool = True,
    argv: Sequence[str] | None = None,
) -> None:
    """Parse the command line, build the config from gin and call `main(config, args)`, or `main(args)` without a config.

    `args.gin` has the gin text (`given`, `operative`) of the config. Exits with the code that `main` returns.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("absl", "jax", "orbax", "etils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        code = _run(main, config, doc, add_flags, workdir, sys.argv[1:] if argv is None else argv)
    except ChameleonError as error:
        print(f"error: {error}", file=sys.stderr)
        code = EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code or 0)


def add_mesh_flag(parser: argparse.ArgumentParser, help: str = "devices over which the weights are divided") -> None:
    """--mesh=tensor=8 or --mesh=data=2,fsdp=1,tensor=-1, as a MeshConfig in `args.mesh`; None without it: one device."""
    parser.add_argument("--mesh", type=parse_mesh, metavar="AXIS=N,...", help=f"{help}, as in tensor=8; -1 takes all")


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


def _run(main, config, doc, add_flags, workdir, argv) -> int | None:
    first, _, rest = doc.strip().partition("\n")
    parser = _Parser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    if config is not None:
        parser.add_argument(
            "--gin_file", action="append", default=[], metavar="FILE", help="gin file; may be given again"
        )
        parser.add_argument(
            "--gin.X.y=v", dest="_", action="store_true", help=f"set one value, as in --gin.{config.__name__}.field=1"
        )
    if workdir:
        parser.add_argument("--workdir", required=True, metavar="DIR", help="where everything of this run is written")
    add_flags(parser)
    bindings = [a.removeprefix("--gin.") for a in argv if a.startswith("--gin.")] if config is not None else []
    flags = [a for a in argv if config is None or not a.startswith("--gin.")]
    args, unknown = parser.parse_known_args(flags)
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        raise ConfigError(f"unknown argument '{unknown[0]}'{did_you_mean(unknown[0].partition('=')[0], known)}")
    if config is None:
        return main(args)
    from chameleon_jax import gin_utils

    loaded = gin_utils.load(config, args.gin_file, bindings)
    args.gin = loaded
    return main(loaded.config, args)
