"""A policy for a small grid world, whose actions are a modality without a codec: from nothing to solved grids on a CPU.

Every step is printed as the command that you would run yourself. Run it again after a stop and it goes on where it was.

Examples:
  python -m experiments.actions --workdir=runs/actions
  python -m experiments.actions --workdir=runs/again --seed=1     # other grids, weights and order

Writes actions.json (how many unseen grids are solved from words and from a picture, n and 95 % interval) and actions.png into the
workdir.
"""

import json
import time
from pathlib import Path

from absl import flags

from chameleon_jax import cli
from chameleon_jax.demo import journey


def _flags(values):
    steps = "optimiser steps of the transformer (default: as in its gin file)"
    flags.DEFINE_integer("steps", None, steps, flag_values=values)
    flags.DEFINE_integer("seed", 0, "of grids, codec, transformer and order", flag_values=values)


def main(args) -> None:
    start, root = time.monotonic(), Path(args.workdir).resolve()
    journey.claim(root, chosen={"seed": args.seed}, steps=args.steps)
    from chameleon_jax.demo import policy
    from chameleon_jax.generation.loading import load_run

    journey.follow(policy.commands(root, seed=args.seed, steps=args.steps), "unseen grids, told in words and drawn")
    run = load_run(root / "model")
    episodes = {source: policy.examine(run, source, seed=args.seed) for source in policy.SOURCES}
    exact = policy.codec_is_exact(run, episodes["image"].grids)
    seconds = round(time.monotonic() - start, 1)
    subtitle = f"{run.step:,} steps, seed {args.seed}; no grid below was in training"
    policy.draw_page(root / "actions.png", run, episodes, subtitle=subtitle)
    numbers = {"seed": args.seed, "steps": run.step, "seconds": seconds, "exact_pictures": exact.to_dict()}
    for source, found in episodes.items():
        numbers[f"from {source}"] = {"solved": found.solved.to_dict(), "shortest": found.shortest.to_dict()}
    (root / "actions.json").write_text(json.dumps(numbers, indent=2) + "\n")
    print()
    for source, found in episodes.items():
        print(f"from {source:12} solved {found.solved}, on a shortest way {found.shortest}")
    print(f"picture codec     exact {exact}")
    print(f"time              {seconds:.0f} s\nlook at           {root / 'actions.png'}")


if __name__ == "__main__":
    cli.run(main, None, __doc__, add_flags=_flags)
