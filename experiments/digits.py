"""Write scikit-learn's handwritten digits as PNG files with captions: a real data set that needs no download.

Examples:
  python -m experiments.digits --workdir=runs/quickstart/data
"""

from absl import flags

from chameleon_jax import cli
from chameleon_jax.demo import digits
from chameleon_jax.errors import ConfigError


def _flags(values):
    flags.DEFINE_integer("seed", 0, "of the moved copies and the captions", flag_values=values)


def main(args) -> None:
    if args.seed < 0:
        raise ConfigError(f"--seed must be at least 0, got {args.seed}")
    digits.write(args.workdir, seed=args.seed)
    print(f"{args.workdir}: train.jsonl, heldout.jsonl and images/")


if __name__ == "__main__":
    cli.run(main, None, __doc__, add_flags=_flags)
