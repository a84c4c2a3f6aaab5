"""What the quickstart does, as the commands that a user would type."""

from __future__ import annotations

import dataclasses
from pathlib import Path

RUNS = Path(__file__).resolve().parents[2] / "gin_configs" / "runs"


@dataclasses.dataclass(frozen=True)
class Command:
    """`python -m experiments.MODULE FLAGS`, and what it is for."""

    what: str
    module: str
    flags: tuple[str, ...]


def commands(root: Path, *, seed: int, steps: int | None, codec_steps: int | None) -> list[Command]:
    """From nothing to a trained model in `root/model`; what is None is as in the gin files."""
    data, tokenizer, store, model = (root / name for name in ("data", "tokenizer", "store", "model"))
    codec = () if codec_steps is None else (f"--gin.VQTrainConfig.steps={codec_steps}",)
    length = () if steps is None else (f"--gin.TrainConfig.steps={steps}",)
    seeded = f"--gin.SEED={seed}"

    def run_file(name: str) -> str:
        return f"--gin_file={RUNS / name}"

    def tokenize(part: str) -> Command:
        inputs = (f"--gin.MANIFEST={data / part}.jsonl", f"--gin.TOKENIZER={tokenizer}")
        flags = (run_file("digits_tokenize.gin"), *inputs, seeded, f"--workdir={store / part}")
        return Command(f"pictures and words to tokens ({part})", "tokenize", flags)

    stores = (f"--gin.TRAIN={store / 'train'}", f"--gin.HELDOUT={store / 'heldout'}")
    return [
        Command("write 1,797 handwritten digits with captions", "digits", (f"--seed={seed}", f"--workdir={data}")),
        Command(
            "train the tokenizer: image codec and text pieces",
            "train_tokenizer",
            (run_file("digits_tokenizer.gin"), f"--gin.DATA={data}", seeded, *codec, f"--workdir={tokenizer}"),
        ),
        tokenize("train"),
        tokenize("heldout"),
        Command(
            "pretrain the transformer on both orders",
            "pretrain",
            (run_file("digits.gin"), *stores, seeded, *length, f"--workdir={model}"),
        ),
    ]
