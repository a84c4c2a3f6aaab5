"""A small world of squares with an agent, a goal and walls: shortest paths as sequences of bounded integers.

A grid is told in words or drawn as a picture; an action is the number of the neighbouring square to go to, or STOP, without any
codec. A grid belongs to the training part or to the unseen part by a hash of its words, so the parts share no grid for any seed.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from chameleon_jax.files import atomic_write

SIZE = 4  # squares a side
WALLS = (1, 3)  # least and most of a grid
STOP = SIZE * SIZE  # the action after the numbers of all squares, row by row
SQUARE = 2  # pixels a side of a drawn square: a patch of 2 x 2 pixels is one square
LONGEST = SIZE * SIZE  # actions of an episode, stop included, are fewer than squares
UNSEEN_OF = 8  # one grid in so many is unseen
TRAIN = 16_000  # grids of the training part

_MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))  # up, down, left, right
_GROUND, _WALL, _AGENT, _GOAL = (255, 255, 255), (0, 0, 0), (0, 60, 255), (0, 230, 60)

Square = tuple[int, int]  # row from the top, column from the left


@dataclasses.dataclass(frozen=True)
class Grid:
    """Where things are; walls are sorted."""

    agent: Square
    goal: Square
    walls: tuple[Square, ...]

    @property
    def unseen(self) -> bool:
        """Whether it is kept from training."""
        return hashlib.sha256(describe(self).encode()).digest()[0] % UNSEEN_OF == 0


def generate(count: int, *, unseen: bool, seed: int = 0) -> list[Grid]:
    """`count` different grids of one part, each with a path from agent to goal, the same for the same seed."""
    random = np.random.default_rng((seed, int(unseen)))
    found: dict[Grid, None] = {}
    while len(found) < count:
        walls = int(random.integers(WALLS[0], WALLS[1] + 1))
        picked = random.choice(SIZE * SIZE, 2 + walls, replace=False)
        agent, goal, *rest = [divmod(int(square), SIZE) for square in picked]
        grid = Grid(agent, goal, tuple(sorted(rest)))
        if grid.unseen == unseen and grid not in found and distances(grid).get(agent) is not None:
            found[grid] = None
    return list(found)


def distances(grid: Grid) -> dict[Square, int]:
    """Moves from each square to the goal by breadth-first search; squares without a way are absent."""
    moves, waiting = {grid.goal: 0}, collections.deque([grid.goal])
    while waiting:
        square = waiting.popleft()
        for neighbour in _neighbours(grid, square):
            if neighbour not in moves:
                moves[neighbour] = moves[square] + 1
                waiting.append(neighbour)
    return moves


def solution(grid: Grid) -> tuple[int, ...]:
    """A shortest path and a stop. Of equally short ones it goes first up, else down, left, right, so it is unique."""
    moves, square, actions = distances(grid), grid.agent, []
    while square != grid.goal:
        square = next(n for n in _neighbours(grid, square) if moves[n] < moves[square])
        actions.append(_number(square))
    return (*actions, STOP)


def solves(grid: Grid, actions: Sequence[int]) -> bool:
    """Whether the actions lead to the goal and stop there, on a way of any length: from each square to a free one beside it."""
    square = grid.agent
    for action in actions:
        if action == STOP:
            return square == grid.goal
        if action not in map(_number, _neighbours(grid, square)):
            return False
        square = divmod(action, SIZE)
    return False


def action_name(action: int) -> str:
    """As people read it: the letter of a square, or "stop"."""
    return "stop" if action == STOP else _name(divmod(action, SIZE))


def describe(grid: Grid) -> str:
    """In words, as in "agent at g, goal at m, walls b, k"; squares are letters, row by row, so that one token names one square."""
    walls = ", ".join(map(_name, grid.walls))
    return f"agent at {_name(grid.agent)}, goal at {_name(grid.goal)}, walls {walls}"


def draw(grid: Grid) -> UInt8[np.ndarray, "8 8 3"]:
    """As a picture: the agent blue, the goal green, walls black, each square of 2 x 2 pixels."""
    picture = np.full((SIZE * SQUARE, SIZE * SQUARE, 3), _GROUND, np.uint8)
    things = [(square, _WALL) for square in grid.walls] + [(grid.goal, _GOAL), (grid.agent, _AGENT)]
    for (row, column), colour in things:
        picture[row * SQUARE : (row + 1) * SQUARE, column * SQUARE : (column + 1) * SQUARE] = colour
    return picture


def write(folder: str | Path, *, train: int = TRAIN, heldout: int = 500, seed: int = 0) -> None:
    """Write PNG files, and `train.jsonl` and `heldout.jsonl` (source kind `folder`) below `folder`.

    Of each document a model is to learn the second half: actions after a grid in words, actions after a drawn grid, and of every
    other grid the words of the picture, which say in many ids where things are, where actions are few.
    """
    from PIL import Image

    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("heldout", heldout)):
        records = []
        for index, grid in enumerate(generate(count, unseen=part == "heldout", seed=seed)):
            name = f"images/{part}-{index:05d}.png"
            Image.fromarray(draw(grid)).save(folder / name, compress_level=1)
            words, picture, actions = {"text": describe(grid)}, {"image": name}, {"actions": list(solution(grid))}
            pairs = [(words, actions), (picture, actions), (picture, words)][: 3 if index % 2 else 2]
            for number, (given, asked) in enumerate(pairs):
                segments = [given | {"loss": False}, asked]
                records.append({"id": f"{part}-{index:05d}-{number}", "segments": segments})
        atomic_write(folder / f"{part}.jsonl", "".join(json.dumps(record) + "\n" for record in records))


def _number(square: Square) -> int:
    return square[0] * SIZE + square[1]


def _name(square: Square) -> str:
    return chr(ord("a") + _number(square))


def _neighbours(grid: Grid, square: Square) -> list[Square]:
    """Free squares beside it: up, down, left, right."""
    beside = [(square[0] + down, square[1] + right) for down, right in _MOVES]
    return [s for s in beside if all(0 <= side < SIZE for side in s) and s not in grid.walls]
