"""Write small grids with walls, in words and as PNG files, and the shortest path through each as numbers.

Examples:
  python -m experiments.grid_world --workdir=runs/grid/data
"""

from chameleon_jax import cli
from chameleon_jax.demo import grid_world
from chameleon_jax.errors import ConfigError


def _flags(parser):
    parser.add_argument("--seed", type=int, default=0, help="of the grids (default: 0)")
    parser.add_argument("--train", type=int, default=8_000, help="grids to train on (default: 8000)")
    parser.add_argument("--unseen", type=int, default=500, help="grids kept from training (default: 500)")


def main(args) -> None:
    for name, least in (("seed", 0), ("train", 1), ("unseen", 1)):
        if getattr(args, name) < least:
            raise ConfigError(f"--{name} must be at least {least}, got {getattr(args, name)}")
    grid_world.write(args.workdir, train=args.train, unseen=args.unseen, seed=args.seed)
    print(f"{args.workdir}: train.jsonl, unseen.jsonl and images/")


if __name__ == "__main__":
    cli.run(main, None, __doc__, add_flags=_flags)
