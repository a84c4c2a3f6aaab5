"""Words, pictures and sounds of digits in one model, each made from each other: from nothing to measured answers on a CPU.

Every step is printed as the command that you would run yourself. Run it again after a stop and it goes on where it was.

Examples:
  python -m experiments.three_modalities --workdir=runs/three
  python -m experiments.three_modalities --workdir=runs/again --seed=1     # other voices, copies, weights, order and draws
  python -m experiments.three_modalities --workdir=runs/short --steps=100  # a shorter, worse one

Writes three_modalities.json (of each direction the right answers, n and 95 % interval), three_modalities.png and sounds/*.wav into
the workdir. Needs the extra [demo], which has the speech synthesiser.
"""

import json
import time
from pathlib import Path

from absl import flags

from chameleon_jax import cli
from chameleon_jax.demo import espeak, journey
from chameleon_jax.errors import DataError


def _flags(values):
    steps = "optimiser steps of the transformer (default: as in its gin file)"
    flags.DEFINE_integer("steps", None, steps, flag_values=values)
    flags.DEFINE_integer("seed", 0, "of data, codecs, transformer and draws", flag_values=values)


def main(args) -> None:
    start, root = time.monotonic(), Path(args.workdir).resolve()
    if not espeak.available():
        raise DataError("no speech synthesiser: install it with  pip install 'chameleon-jax[demo]'")
    journey.claim(root, chosen={"seed": args.seed}, steps=args.steps)
    from chameleon_jax.demo import directions, three_modalities
    from chameleon_jax.generation.loading import load_run

    asked = three_modalities.commands(root, seed=args.seed, steps=args.steps)
    journey.follow(asked, "each of the three from each other, by likelihood and by generation")
    trained = round(time.monotonic() - start, 1)
    run = load_run(root / "model")
    examination, forms = directions.examine(run, root / "data", seed=args.seed)
    codecs = run.bundle.codecs
    subtitle = (
        f"{run.step:,} steps, seed {args.seed}. A picture is {codecs['image'].length} codes, a sound of "
        f"{codecs['sound'].config.seconds:g} s is {codecs['sound'].length}; no voice and no picture that was given was in "
        "training. Sounds are shown as spectrograms: time to the right, frequency upwards."
    )
    three_modalities.draw_page(root / "three_modalities.png", run, examination, forms, subtitle=subtitle)
    waves = three_modalities.write_sounds(root / "sounds", run, examination)
    seconds = {"seconds": trained, "seconds_with_examination": round(time.monotonic() - start, 1)}
    numbers = {"seed": args.seed, "steps": run.step, **seconds, "directions": examination.to_dict()}
    (root / "three_modalities.json").write_text(json.dumps(numbers, indent=2) + "\n")
    print(f"\n{'':18}{'by likelihood':>32}{'by gain':>32}{'generated':>32}")
    for direction in examination.raw:
        parts = (examination.raw, examination.gain)
        columns = [str(part[direction]) for part in parts] + [str(examination.generated[direction].right)]
        print(f"{' to '.join(direction):18}" + "".join(f"{column:>32}" for column in columns))
    print(f"time              {trained:.0f} s, with the examination {seconds['seconds_with_examination']:.0f} s")
    print(f"look at           {root / 'three_modalities.png'}\nlisten to         {waves[0].parent}")
    one = '--gin.GenerationConfig.max_spans={"sound": 1}'
    again = (f"--workdir={root / 'model'}", "--prompt=seven", "--mode=sound", one, f"--out={root / 'out'}")
    print(f"go on with        {journey.Command('', 'generate', again).typed}")


if __name__ == "__main__":
    cli.run(main, None, __doc__, add_flags=_flags)
