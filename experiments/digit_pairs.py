"""Write drawn, spoken and written digits as documents of one or two forms: a data set of three modalities that needs no download.

Examples:
  python -m experiments.digit_pairs --workdir=runs/three/data

Needs the extra [demo], which has the speech synthesiser.
"""

from absl import flags

from chameleon_jax import cli
from chameleon_jax.demo import digit_pairs
from chameleon_jax.errors import ConfigError


def _flags(values):
    flags.DEFINE_integer("seed", 0, "of moved copies, voices and pairs", flag_values=values)


def main(args) -> None:
    if args.seed < 0:
        raise ConfigError(f"--seed must be at least 0, got {args.seed}")
    digit_pairs.write(args.workdir, seed=args.seed)
    print(f"{args.workdir}: train.jsonl, heldout.jsonl, drawn/ and spoken/")


if __name__ == "__main__":
    cli.run(main, None, __doc__, add_flags=_flags)
