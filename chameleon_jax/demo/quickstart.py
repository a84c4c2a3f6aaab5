"""What the quickstart does, as the commands that a user would type."""

from __future__ import annotations

from pathlib import Path

from chameleon_jax.demo import journey
from chameleon_jax.demo.journey import Command, run_file


def commands(
    root: Path, *, seed: int, steps: int | None, codec_steps: int | None, image_input: str = "codes"
) -> list[Command]:
    """From nothing to a trained model in `root/model`; what is None is as in the gin files.

    With `image_input` "patches" the model perceives the pictures that it captions; those that it draws are codes either way.
    """
    name = {"codes": "digits", "patches": "digits_patches"}[image_input]
    data, tokenizer, store, model = (root / name for name in ("data", "tokenizer", "store", "model"))
    codec, seeded = journey.steps("VQTrainConfig", codec_steps), f"--gin.SEED={seed}"
    stores = (f"--gin.TRAIN={store / 'train'}", f"--gin.HELDOUT={store / 'heldout'}")
    length = journey.steps("TrainConfig", steps)
    return [
        Command("write 1,797 handwritten digits with captions", "digits", (f"--seed={seed}", f"--workdir={data}")),
        Command(
            "train the tokenizer: image codec and text pieces",
            "train_tokenizer",
            (run_file(f"{name}_tokenizer.gin"), f"--gin.DATA={data}", seeded, *codec, f"--workdir={tokenizer}"),
        ),
        journey.tokenize(f"{name}_tokenize.gin", root, "train", seed),
        journey.tokenize(f"{name}_tokenize.gin", root, "heldout", seed),
        Command(
            "pretrain the transformer on both orders",
            "pretrain",
            (run_file(f"{name}.gin"), *stores, seeded, *length, f"--workdir={model}"),
        ),
    ]
