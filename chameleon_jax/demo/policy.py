"""The run of the grid world as the commands that a user would type, and its examination: does the policy solve unseen grids?

Actions are a modality without a codec: a model that reads words and pictures is a policy once its documents end in actions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image, ImageOps

from chameleon_jax.configs import GenerationConfig, SamplingConfig
from chameleon_jax.demo import grid_world, journey
from chameleon_jax.demo.grid_world import LONGEST, Grid
from chameleon_jax.demo.journey import Command
from chameleon_jax.demo.proportions import Proportion
from chameleon_jax.evaluation import page
from chameleon_jax.generation.engine import generate
from chameleon_jax.generation.loading import Run
from chameleon_jax.generation.prompt import SpanOutput, read_output

GRIDS = 1_000  # unseen ones to solve
SOURCES = ("text", "image")
_SHOWN, _SIDE, _WORDS = 10, 100, 8  # grids on the page, pixels a side of each, actions that are told below it


@dataclasses.dataclass(frozen=True)
class Episodes:
    """Grids, and the actions that the policy took in each."""

    grids: list[Grid]
    actions: list[tuple[int, ...]]

    @property
    def solved(self) -> Proportion:
        """How many ways lead to the goal and stop there."""
        return Proportion.of(map(grid_world.solves, self.grids, self.actions))

    @property
    def shortest(self) -> Proportion:
        """How many of them are also as short as can be."""
        return Proportion.of(
            grid_world.solves(grid, actions) and len(actions) == len(grid_world.solution(grid))
            for grid, actions in zip(self.grids, self.actions, strict=True)
        )


def commands(root: Path, *, seed: int, steps: int | None) -> list[Command]:
    """From nothing to a trained policy in `root/model`; steps that are None are as in the gin files."""
    return journey.from_data_to_model(
        root,
        "actions",
        data=("write grids and their shortest paths", "grid_world"),
        tokenizer="train the tokenizer: text pieces and picture codec; actions need none",
        model="train the policy: the loss is on what follows a grid",
        seed=seed,
        steps=steps,
    )


def examine(run: Run, source: str, *, seed: int = 0, count: int = GRIDS) -> Episodes:
    """The most likely actions in unseen grids, which are told in words ("text") or drawn ("image")."""
    grids = grid_world.generate(count, unseen=True, seed=seed)
    config = GenerationConfig(mode="actions", max_tokens=LONGEST, sampling={"actions": SamplingConfig(temperature=0.0)})
    outputs = generate(run.params, run.model, run.bundle.vocab, _prompts(run, grids, source), config)
    return Episodes(grids, [_actions(read_output(output.ids, run.bundle)) for output in outputs])


def draw_page(path: Path, run: Run, episodes: dict[str, Episodes], *, subtitle: str) -> None:
    """The first grids of each kind of prompt with the actions that were taken."""
    sections = []
    for source, found in episodes.items():
        grids, taken = found.grids[:_SHOWN], found.actions[:_SHOWN]
        ways = [
            " ".join(map(grid_world.action_name, actions[:_WORDS]))
            + (" ..." if len(actions) > _WORDS else "")
            + ("" if grid_world.solves(grid, actions) else " (not solved)")
            for grid, actions in zip(grids, taken, strict=True)
        ]
        what = "told in words" if source == "text" else "drawn"
        row = page.Row("agent blue, goal green, walls black; below, what the policy did", _framed(grids), ways)
        sections.append(page.Section(f"Grids that were {what}: {found.solved} solved", [row]))
    page.draw(path, "Actions as a modality without a codec", subtitle, sections, picture_size=_SIDE + 2)


def _framed(grids: Sequence[Grid]) -> list[Image.Image]:
    """Drawn grids in a thin line: the ground is white, as the page is."""
    drawn = [Image.fromarray(grid_world.draw(g)).resize((_SIDE, _SIDE), Image.Resampling.NEAREST) for g in grids]
    return [ImageOps.expand(picture, 1, "#86868b") for picture in drawn]


def codec_is_exact(run: Run, grids: Sequence[Grid]) -> Proportion:
    """How many drawn grids come back from their codes with every square's own colour nearest."""
    pictures = _pixels(grids)
    codec = run.bundle.pictures
    rebuilt = codec.decode(codec.encode(pictures))
    colours = np.unique(pictures.reshape(-1, 3), axis=0)
    nearest = [np.argmin(((p[..., None, :] - colours) ** 2).sum(axis=-1), axis=-1) for p in (pictures, rebuilt)]
    return Proportion.of((nearest[0] == nearest[1]).all(axis=(1, 2)))


def _prompts(run: Run, grids: Sequence[Grid], source: str) -> list[Int[np.ndarray, "_"]]:
    bundle = run.bundle
    if source == bundle.vocab.text.name:
        codes = [bundle.codes(source, grid_world.describe(grid)) for grid in grids]
    else:
        codes = bundle.codecs[source].encode(_pixels(grids))
    return [bundle.vocab.begun(source, own) for own in codes]


def _pixels(grids: Sequence[Grid]) -> Float[np.ndarray, "n H W 3"]:
    return np.stack([grid_world.draw(grid) for grid in grids]).astype(np.float32) / 127.5 - 1


def _actions(parts: Sequence[Any]) -> tuple[int, ...]:
    spans = [part for part in parts if isinstance(part, SpanOutput) and part.codes is not None]
    return tuple(int(code) for part in spans for code in part.codes)
