"""The whole way on real data in minutes on a CPU: digits and captions -> tokens -> model -> captions and pictures.

Every step is printed as the command that you would run yourself. Run it again after a stop and it goes on where it was.

Examples:
  python -m experiments.quickstart --workdir=runs/quickstart
  python -m experiments.quickstart --workdir=runs/quick --steps=100     # a shorter, worse one

Writes quickstart.json (caption_accuracy, recognised, psnr, seconds) and quickstart.png into the workdir.
"""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

from chameleon_jax import cli
from chameleon_jax.errors import ChameleonError

RUNS = Path(__file__).resolve().parents[1] / "gin_configs" / "runs"


def _flags(parser):
    parser.add_argument("--steps", type=int, help="optimiser steps of the transformer (default: as in digits.gin)")
    parser.add_argument(
        "--codec_steps", type=int, help="optimiser steps of the image codec (default: as in its gin file)"
    )


def _run(number: int, what: str, module: str, *flags: str) -> None:
    command = ["python", "-m", f"experiments.{module}", *flags]
    print(f"\n[{number}/6] {what}\n  $ {' '.join(command)}", flush=True)
    code = subprocess.run([sys.executable, *command[1:]], cwd=RUNS.parents[1]).returncode
    if code:
        raise ChameleonError(f"step {number} ended with exit code {code}; its own message is above")


def main(args) -> None:
    start = time.monotonic()
    root = Path(args.workdir).resolve()
    data, tokenizer, store, model = root / "data", root / "tokenizer", root / "store", root / "model"
    codec = [f"--gin.VQTrainConfig.steps={args.codec_steps}"] if args.codec_steps else []
    steps = [f"--gin.TrainConfig.steps={args.steps}"] if args.steps else []
    if not (data / "heldout.jsonl").exists():
        _run(1, "write 1,797 handwritten digits with captions", "digits", f"--workdir={data}")
    gin = f"--gin_file={RUNS / 'digits_tokenizer.gin'}"
    _run(
        2,
        "train the tokenizer: image codec and text pieces",
        "train_tokenizer",
        gin,
        f"--gin.DATA={data}",
        *codec,
        f"--workdir={tokenizer}",
    )
    for number, part in ((3, "train"), (4, "heldout")):
        flags = (f"--gin.MANIFEST={data / part}.jsonl", f"--gin.TOKENIZER={tokenizer}", f"--workdir={store / part}")
        _run(
            number,
            f"pictures and words to tokens ({part})",
            "tokenize",
            f"--gin_file={RUNS / 'digits_tokenize.gin'}",
            *flags,
        )
    flags = (f"--gin.TRAIN={store / 'train'}", f"--gin.HELDOUT={store / 'heldout'}", *steps, f"--workdir={model}")
    _run(5, "pretrain the transformer on both orders", "pretrain", f"--gin_file={RUNS / 'digits.gin'}", *flags)

    print("\n[6/6] captions of held-out digits, and digits drawn from captions", flush=True)
    from chameleon_jax.demo import judge
    from chameleon_jax.generation import run

    loaded = run.load(model)
    subtitle = (
        f"{loaded.step} steps on 11,496 captioned digits; every picture is 16 codes in the same stream as its words"
    )
    result = judge.examine(loaded, root / "quickstart.png", subtitle=subtitle)
    psnr = json.loads((tokenizer / "evaluation.json").read_text())["psnr"]
    numbers = dataclasses.asdict(result) | {"psnr": psnr, "seconds": round(time.monotonic() - start, 1)}
    (root / "quickstart.json").write_text(json.dumps(numbers, indent=2) + "\n")
    print(f"\ncaption accuracy {result.caption_accuracy:.1%} of 360 held-out digits (chance 10 %)")
    print(f"recognised       {result.recognised:.1%} of 400 generated digits (chance 10 %)")
    print(f"codec            {psnr:.1f} dB PSNR on held-out digits")
    print(f"time             {numbers['seconds']:.0f} s\nlook at          {root / 'quickstart.png'}")
    generate = (
        f"python -m experiments.generate --workdir={model} --prompt='the digit 7' --mode=image --out={root / 'out'}"
    )
    print(f"go on with       {generate}")


if __name__ == "__main__":
    cli.run(main, None, __doc__, add_flags=_flags)
