"""What the examinations of the demonstrations count, on answers that are known."""

import types

import numpy as np
import pytest

from chameleon_jax.demo import directions, grid_world, policy
from chameleon_jax.demo.directions import Forms
from chameleon_jax.generation.prompt import SpanOutput


@pytest.fixture
def forms():
    """Two words, spoken and written, of each digit; digit d has the ids d and 20 + d."""
    ids = [np.array([digit]) for digit in range(10)] + [np.array([20 + digit]) for digit in range(10)]
    labels = np.tile(np.arange(10), 2)
    return Forms(ids={"text": ids, "sound": ids}, items={}, labels={"text": labels, "sound": labels})


def test_gain_takes_away_what_is_likely_by_itself(forms, monkeypatch):
    def scores(run, forms, source, target, pairs):
        """The right digit is 2 nats likelier than the others, and a three 5 nats likelier than any other at all."""
        labels = {pair: (forms.labels[source][pair[0]], forms.labels[target][pair[1]]) for pair in pairs}
        return {pair: 5.0 * (said == 3) + 2.0 * (said == given) for pair, (given, said) in labels.items()}

    monkeypatch.setattr(directions, "_scores", scores)
    queries = np.arange(20)
    raw, gain = directions.choose(None, forms, "text", "sound", queries, np.random.default_rng(0))
    assert (raw.right, raw.n) == (2, 20)
    assert (gain.right, gain.n) == (20, 20)


def test_queries_are_as_many_of_each_digit(forms):
    found = directions._queries(forms, "sound", 5, np.random.default_rng(0))
    assert np.bincount(forms.labels["sound"][found], minlength=10).tolist() == [5] * 10
    two = directions._queries(forms, "sound", 2, np.random.default_rng(0))
    assert sorted(two) == list(range(20))  # no one twice where there are enough


def test_a_policy_is_right_where_it_stops_on_the_goal(monkeypatch):
    grid = grid_world.Grid(agent=(0, 0), goal=(0, 1), walls=((3, 3),))
    ways = [(1, 16), (4, 5, 1, 16), (1,), (16,), ()]
    monkeypatch.setattr(grid_world, "generate", lambda count, **_: [grid] * count)
    monkeypatch.setattr(policy, "_prompts", lambda *_: [None] * len(ways))
    monkeypatch.setattr(policy, "generate", lambda *_: [types.SimpleNamespace(ids=way) for way in ways])
    monkeypatch.setattr(
        policy, "read_output", lambda ids, _: [SpanOutput(modality="actions", codes=np.array(ids, int))]
    )
    run = types.SimpleNamespace(params=None, model=None, bundle=types.SimpleNamespace(vocab=None))
    episodes = policy.examine(run, "text", count=len(ways))
    assert (episodes.solved.right, episodes.shortest.right, episodes.solved.n) == (2, 1, 5)
