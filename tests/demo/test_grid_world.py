"""The grid world: parts that share no grid, paths that are shortest, a judge that sees every way to fail."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from scipy.sparse import csgraph, csr_array

from chameleon_jax.demo import grid_world
from chameleon_jax.demo.grid_world import STOP, Grid

# a b c d      rows go down, columns to the right
# e A # h
# i j # G
# m n o p
GRID = Grid(agent=(1, 1), goal=(2, 3), walls=((1, 2), (2, 2)))


@pytest.fixture(scope="module")
def grids():
    return grid_world.generate(400, unseen=False), grid_world.generate(100, unseen=True)


def test_grids_are_different_and_the_parts_share_none_for_any_seed(grids):
    train, unseen = grids
    assert len(set(train)) == 400 and len(set(unseen)) == 100
    others = grid_world.generate(400, unseen=False, seed=1)
    assert not set(others) & set(unseen) and set(others) != set(train)
    assert grid_world.generate(400, unseen=False) == train
    assert 0.09 < np.mean([grid.unseen for grid in map(_random_grid, range(2000))]) < 0.16


def _random_grid(seed):
    picked = np.random.default_rng(seed).choice(16, 4, replace=False)
    agent, goal, *walls = [divmod(int(square), 4) for square in picked]
    return Grid(agent, goal, tuple(sorted(walls)))


def test_solutions_are_as_short_as_those_of_scipy(grids):
    for grid in grids[0][:60]:
        free = [(r, c) for r in range(4) for c in range(4) if (r, c) not in grid.walls]
        near = [[abs(a - c) + abs(b - d) == 1 for c, d in free] for a, b in free]
        lengths = csgraph.shortest_path(csr_array(np.array(near, int)), unweighted=True)
        actions = grid_world.solution(grid)
        assert len(actions) - 1 == lengths[free.index(grid.agent), free.index(grid.goal)]
        assert grid_world.solves(grid, actions) and len(actions) <= grid_world.LONGEST


@pytest.mark.parametrize(
    ("way", "solved"),
    [
        ("b c d h l stop", True),
        ("j n o p l stop", True),
        ("e f b c d h l stop", True),
        ("b c d h l", False),  # no stop
        ("b c d h stop", False),  # stops beside the goal
        ("g h l stop", False),  # into a wall
        ("b d h l stop", False),  # over a square
        ("f b c d h l stop", False),  # to where it is
        ("b c d h i stop", False),  # the next number, on the other side
        ("stop", False),
        ("", False),
    ],
)
def test_the_judge_wants_the_goal_a_stop_and_free_squares_beside_each_other(way, solved):
    actions = [STOP if name == "stop" else ord(name) - ord("a") for name in way.split()]
    assert grid_world.solves(GRID, actions) == solved
    assert " ".join(map(grid_world.action_name, actions)) == way


@pytest.mark.parametrize("action", [-1, 17, 100])
def test_numbers_of_no_square_solve_nothing(action):
    assert not grid_world.solves(GRID, (action, STOP))


def test_words_and_picture_tell_the_whole_grid(grids):
    assert grid_world.describe(GRID) == "agent at f, goal at l, walls g, k"
    for grid in grids[0][:50]:
        letters = re.findall(r"\b[a-p]\b", grid_world.describe(grid))
        agent, goal, *walls = (divmod(ord(letter) - ord("a"), 4) for letter in letters)
        assert Grid(agent, goal, tuple(walls)) == grid
        centres = grid_world.draw(grid)[::2, ::2].astype(int)
        red, green, blue = np.moveaxis(centres, -1, 0)
        assert [tuple(s) for s in np.argwhere((blue > 200) & (red < 100)).tolist()] == [grid.agent]
        assert [tuple(s) for s in np.argwhere((green > 150) & (red < 100) & (blue < 100)).tolist()] == [grid.goal]
        assert [tuple(s) for s in np.argwhere(centres.sum(axis=-1) < 200).tolist()] == list(grid.walls)


def test_written_documents_give_a_grid_and_then_its_actions_or_its_words(tmp_path):
    grid_world.write(tmp_path, train=20, heldout=5)
    records = [json.loads(line) for line in (tmp_path / "train.jsonl").open()]
    assert len(records) == 50 and len((tmp_path / "heldout.jsonl").read_text().splitlines()) == 12
    for index, grid in enumerate(grid_world.generate(20, unseen=False)):
        told, drawn, *described = [r["segments"] for r in records if r["id"].startswith(f"train-{index:05d}-")]
        (words, actions), (picture, same) = told, drawn
        assert words == {"text": grid_world.describe(grid), "loss": False} and picture["loss"] is False
        assert described == ([[picture, {"text": grid_world.describe(grid)}]] if index % 2 else [])
        assert actions == same and grid_world.solves(grid, actions["actions"])
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / picture["image"])), grid_world.draw(grid))
