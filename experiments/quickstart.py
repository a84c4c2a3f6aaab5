"""The whole way on real data in two to three minutes on a CPU: digits and captions -> tokens -> model -> captions and pictures.

Every step is printed as the command that you would run yourself. Run it again after a stop and it goes on where it was.

Examples:
  python -m experiments.quickstart --workdir=runs/quickstart
  python -m experiments.quickstart --workdir=runs/quick --steps=100     # a shorter, worse one
  python -m experiments.quickstart --workdir=runs/again --seed=1        # other copies, weights, order and drawings
  python -m experiments.quickstart --workdir=runs/seen --image_input=patches  # captions from pixels, drawings in codes

Writes quickstart.json (seed, image_input, caption_accuracy, recognised, psnr, seconds) and quickstart.png into the workdir.
"""

import dataclasses
import json
import time
from pathlib import Path

from absl import flags

from chameleon_jax import cli
from chameleon_jax.demo import journey, quickstart


def _flags(values):
    steps = "optimiser steps of the {} (default: as in its gin file)"
    flags.DEFINE_integer("steps", None, steps.format("transformer"), flag_values=values)
    flags.DEFINE_integer("codec_steps", None, steps.format("image codec"), flag_values=values)
    flags.DEFINE_integer("seed", 0, "of data, codec, transformer and drawing", flag_values=values)
    given = "how the model takes in the pictures that it captions; it draws codes either way"
    flags.DEFINE_enum("image_input", "codes", ("codes", "patches"), given, flag_values=values)


def main(args) -> None:
    start, root = time.monotonic(), Path(args.workdir).resolve()
    counts = {"steps": args.steps, "codec_steps": args.codec_steps}
    journey.claim(root, chosen={"seed": args.seed, "image_input": args.image_input}, **counts)
    asked = quickstart.commands(root, seed=args.seed, image_input=args.image_input, **counts)
    journey.follow(asked, "captions of held-out digits, and digits drawn from captions")

    from chameleon_jax.demo import judge
    from chameleon_jax.generation.loading import load_run

    model, tokenizer = root / "model", root / "tokenizer"
    loaded = load_run(model)
    subtitle = (
        f"{loaded.step:,} steps on 1,437 captioned digits and moved copies of them; a picture that is captioned is 16 "
        f"{args.image_input}, one that is drawn 16 codes in the same stream as its words"
    )
    result = judge.examine(loaded, root / "quickstart.png", subtitle=subtitle, seed=args.seed)
    psnr = json.loads((tokenizer / "evaluation.json").read_text())["psnr"]
    seconds = round(time.monotonic() - start, 1)
    numbers = {
        "seed": args.seed,
        "image_input": args.image_input,
        **dataclasses.asdict(result),
        "psnr": psnr,
        "seconds": seconds,
    }
    (root / "quickstart.json").write_text(json.dumps(numbers, indent=2) + "\n")
    print(f"\ncaption accuracy {result.caption_accuracy:.1%} of 360 held-out digits (chance 10 %)")
    print(f"recognised       {result.recognised:.1%} of 400 generated digits (chance 10 %)")
    print(f"codec            {psnr:.1f} dB PSNR on held-out digits")
    print(f"time             {seconds:.0f} s\nlook at          {root / 'quickstart.png'}")
    flags = (f"--workdir={model}", "--prompt=the digit 7", "--mode=image", "--guidance=meta", f"--out={root / 'out'}")
    print(f"go on with       {journey.Command('', 'generate', flags).typed}")


if __name__ == "__main__":
    cli.run(main, None, __doc__, add_flags=_flags)
