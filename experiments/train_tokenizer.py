"""Train a tokenizer bundle on your pictures and texts: the image codec, the byte-level BPE, or both.

Stop it at any time (Ctrl-C or SIGTERM: it saves and ends with exit code 75) and run the same command again: it goes on, to the same
weights bit for bit. After a kill that asks nobody it goes on from its last save.

Examples:
  python -m experiments.train_tokenizer --gin_file=gin_configs/runs/emoji_tokenizer.gin --gin.DATA=runs/emoji/data \\
      --workdir=runs/emoji/tokenizer
  python -m experiments.train_tokenizer --gin_file=my.gin --gin.TrainTokenizerConfig.parts="['text']" --workdir=runs/mine/tokenizer

The workdir becomes the bundle; evaluation.json and reconstructions.png tell how good the codec is on held-out pictures.
"""

import json
import time
from pathlib import Path

from chameleon_jax import cli, summary
from chameleon_jax.configs import TrainTokenizerConfig


def main(config: TrainTokenizerConfig, args) -> int:
    from chameleon_jax.tokenizer_training.bundle import train_bundle
    from chameleon_jax.workdir import VOCAB

    begin, folder = time.monotonic(), Path(args.workdir)
    if (code := train_bundle(config, folder)) or not (folder / VOCAB).exists():
        return code
    figures = {}
    for file, name, what in (
        ("evaluation.json", "psnr", "PSNR"),
        ("sound_evaluation.json", "log_spectral_distance", "LSD"),
    ):
        for path in sorted(folder.rglob(file)):
            measured = json.loads(path.read_text())
            figures[what] = (
                f"{measured[name]:.2f} dB on held-out data, {measured['codebook_usage']:.0%} of the codes used"
            )
    drawn = {
        str(path): "originals above what their codes decode to" for path in sorted(folder.rglob("*reconstructions.png"))
    }
    summary.show(time.monotonic() - begin, {str(folder): "the tokenizer", **drawn}, figures, _next(args))
    return 0


def _next(args) -> list[summary.Next]:
    """The tokenising run of the run file's sibling; without one a look at the bundle."""
    folder = Path(args.workdir)
    data = Path(summary.macros(args.gin_bindings).get("DATA", ""))
    known = {"TOKENIZER": folder} | ({"MANIFEST": data / "train.jsonl"} if (data / "train.jsonl").is_file() else {})
    flags = summary.following(args.gin_file, args.gin_bindings, ("_tokenizer.gin", "_tokenize.gin"), known)
    if flags:
        return [("tokenize", [*flags, f"--workdir={folder.parent / 'store' / 'train'}"])]
    return [("inspect", [folder])]


if __name__ == "__main__":
    cli.run(main, TrainTokenizerConfig, __doc__)
