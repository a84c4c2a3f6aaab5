"""Write scikit-learn's handwritten digits as PNG files with captions: a real data set that needs no download.

Examples:
  python -m experiments.digits --workdir=runs/quickstart/data
  python -m experiments.digits --stores --workdir=runs/smoke/data        # what gin_configs/runs/smoke.gin trains on

With --stores also WORKDIR/tokenizer, a small one, and the token stores WORKDIR/store/train and WORKDIR/store/heldout.
"""

from absl import flags

from chameleon_jax import cli
from chameleon_jax.demo import digits
from chameleon_jax.errors import ConfigError


def _flags(values):
    flags.DEFINE_integer("seed", 0, "of the moved copies and the captions", flag_values=values)
    flags.DEFINE_boolean("stores", False, "train a small tokenizer and write token stores too", flag_values=values)


def main(args) -> None:
    if args.seed < 0:
        raise ConfigError(f"--seed must be at least 0, got {args.seed}")
    digits.write(args.workdir, seed=args.seed)
    print(f"{args.workdir}: train.jsonl, heldout.jsonl and images/")
    if args.stores:
        from chameleon_jax.demo.prepare import digit_stores

        digit_stores(args.workdir)


if __name__ == "__main__":
    cli.run(main, None, __doc__, add_flags=_flags)
