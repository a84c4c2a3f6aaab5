"""Schedules at their edges, and the update rule against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.configs import OptimConfig, TransformerConfig
from chameleon_jax.models import params, transformer
from chameleon_jax.training import optim

CONFIG = OptimConfig(learning_rate=2e-3, warmup_steps=10, weight_decay=0.1)


@pytest.mark.parametrize("name", ["exponential", "cosine"])
def test_schedules_warm_up_fall_and_end_at_exactly_zero(name):
    rate = optim.learning_rate(dataclasses.replace(CONFIG, schedule=name), 100)
    np.testing.assert_allclose([rate(0), rate(4), rate(9), rate(10)], [2e-4, 1e-3, 2e-3, 2e-3], rtol=1e-6)
    falling = np.array([rate(step) for step in range(10, 101)])
    assert (np.diff(falling) < 0).all()
    assert falling[-1] == 0.0 and rate(1000) == 0.0


def test_the_cosine_is_halfway_down_in_the_middle_and_the_exponential_follows_its_curve():
    middle = 55  # of 10..100
    np.testing.assert_allclose(optim.learning_rate(dataclasses.replace(CONFIG, schedule="cosine"), 100)(middle), 1e-3)
    expected = 2e-3 * (0.01**0.5 - 0.01) / 0.99
    np.testing.assert_allclose(optim.learning_rate(CONFIG, 100)(middle), expected, rtol=1e-5)


def test_the_constant_schedule_only_warms_up_and_no_warm_up_starts_at_the_top():
    rate = optim.learning_rate(dataclasses.replace(CONFIG, schedule="constant"), 100)
    assert rate(5) < rate(50) == rate(99)
    np.testing.assert_allclose(optim.learning_rate(dataclasses.replace(CONFIG, warmup_steps=0), 100)(0), 2e-3)


def test_weight_decay_reaches_matrices_and_embeddings_but_no_norm():
    config = TransformerConfig(d_model=8, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=8, d_ff=8, vocab_size=8)
    decayed = params.map_specs(lambda spec: spec.decayed, transformer.param_specs(config))
    assert decayed == {
        "embed": True,
        "layers": {
            "attn": {
                "wq": True, "wk": True, "wv": True, "wo": True,
                "q_norm": {"scale": False, "bias": False},
                "k_norm": {"scale": False, "bias": False},
            },
            "attn_norm": False,
            "mlp": {"gate": True, "up": True, "down": True},
            "mlp_norm": False,
        },
        "norm": False,
        "head": True,
    }  # fmt: skip


def test_updates_equal_adamw_with_clipping_in_numpy():
    rng = np.random.default_rng(0)
    weights = {"matrix": rng.normal(size=(3, 4)), "norm": rng.normal(size=4)}
    tree = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), weights)
    specs = {
        "matrix": params.ParamSpec(shape=(3, 4), axes="D F", inputs="D", role="matrix", init="normal"),
        "norm": params.ParamSpec(shape=(4,), axes="D", role="norm", init="ones"),
    }
    optimizer = optim.directions(CONFIG, specs)
    state = optimizer.init(tree)
    update = jax.jit(optimizer.update)
    schedule = optim.learning_rate(CONFIG, 100)
    first, second = ({k: np.zeros_like(v) for k, v in weights.items()} for _ in range(2))
    for step in range(5):
        # the first gradients are long and clipped, the later ones short
        gradient = {k: rng.normal(size=v.shape) * 10.0**-step for k, v in weights.items()}
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        rate = 2e-3 * (step + 1) / 10
        for name, g in gradient.items():
            clipped = g * min(1.0, CONFIG.clip_norm / norm)
            first[name] = 0.9 * first[name] + 0.1 * clipped
            second[name] = 0.95 * second[name] + 0.05 * clipped**2
            direction = first[name] / (1 - 0.9 ** (step + 1))
            direction = direction / (np.sqrt(second[name] / (1 - 0.95 ** (step + 1))) + CONFIG.eps)
            if name == "matrix":
                direction = direction + 0.1 * weights[name]
            weights[name] = weights[name] - rate * direction
        directions, state = update(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), gradient), state, tree)
        updates = jax.tree.map(jnp.multiply, directions, jax.tree.map(lambda _, s=step: -schedule(s), directions))
        tree = jax.tree.map(jnp.add, tree, updates)
        for name in weights:
            np.testing.assert_allclose(tree[name], weights[name], rtol=2e-5, err_msg=f"{name}, step {step}")
