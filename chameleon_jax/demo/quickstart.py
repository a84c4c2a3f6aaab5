"""What the quickstart does, as the commands that a user would type."""

from __future__ import annotations

from pathlib import Path

from chameleon_jax.demo import journey
from chameleon_jax.demo.journey import Command


def commands(
    root: Path, *, seed: int, steps: int | None, codec_steps: int | None, image_input: str = "codes"
) -> list[Command]:
    """From nothing to a trained model in `root/model`; what is None is as in the gin files.

    With `image_input` "patches" the model perceives the pictures that it captions; those that it draws are codes either way.
    """
    return journey.from_data_to_model(
        root,
        {"codes": "digits", "patches": "digits_patches"}[image_input],
        data=("write 1,797 handwritten digits with captions", "digits"),
        tokenizer="train the tokenizer: image codec and text pieces",
        model="pretrain the transformer on both orders",
        seed=seed,
        steps=steps,
        codec_steps=codec_steps,
    )
