"""Write grids with walls, told in words or drawn, and their shortest paths as numbers: a data set with a modality without a codec.

Examples:
  python -m experiments.grid_world --workdir=runs/actions/data
"""

from absl import flags

from chameleon_jax import cli
from chameleon_jax.demo import grid_world
from chameleon_jax.errors import ConfigError


def _flags(values):
    flags.DEFINE_integer("seed", 0, "of the grids", flag_values=values)


def main(args) -> None:
    if args.seed < 0:
        raise ConfigError(f"--seed must be at least 0, got {args.seed}")
    grid_world.write(args.workdir, seed=args.seed)
    print(f"{args.workdir}: train.jsonl, heldout.jsonl and images/")


if __name__ == "__main__":
    cli.run(main, None, __doc__, add_flags=_flags)
