"""Write the words "zero" to "nine" in many synthetic voices as WAV files: real sounds that need no download.

Needs the synthesiser: pip install 'chameleon-jax[demo]'

Examples:
  python -m experiments.spoken_digits --workdir=runs/three/sounds
"""

from absl import flags

from chameleon_jax import cli
from chameleon_jax.demo import spoken_digits
from chameleon_jax.errors import ConfigError


def _flags(values):
    flags.DEFINE_integer("seed", 0, "of accents, speed, pitch and noise", flag_values=values)


def main(args) -> None:
    if args.seed < 0:
        raise ConfigError(f"--seed must be at least 0, got {args.seed}")
    spoken_digits.write(args.workdir, seed=args.seed)
    print(f"{args.workdir}: train.jsonl, heldout.jsonl and sounds/")


if __name__ == "__main__":
    cli.run(main, None, __doc__, add_flags=_flags)
