"""AdamW as the Chameleon paper uses it (section 2.3.1), from optax parts, with the learning rate outside.

The rate is a function of the train state's step alone. A count of the optimizer's own would stand still in skipped steps, and the
rate applied would no longer be the rate logged.
"""

from __future__ import annotations

import jax.numpy as jnp
import optax

from chameleon_jax.configs import OptimConfig
from chameleon_jax.models.params import Tree, map_specs


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """Linear warm-up over `warmup_steps`, then decay that reaches 0 at `steps` (constant: no decay).

    The paper says "exponential decay to 0", which an exponential alone never reaches: the curve r^p is shifted and scaled so
    that it is 1 at the end of warm-up (p = 0) and 0 at the end of the run (p = 1).
    """
    warmup = config.warmup_of(steps)
    rate = config.exponential_rate

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        rising = jnp.minimum(1.0, (step + 1) / max(warmup, 1)) if warmup else 1.0
        progress = jnp.clip((step - warmup) / max(steps - warmup, 1), 0.0, 1.0)
        decay = {
            "constant": jnp.ones_like(progress),
            "cosine": 0.5 * (1 + jnp.cos(jnp.pi * progress)),
            "exponential": (rate**progress - rate) / (1 - rate),
        }[config.schedule]
        return config.learning_rate * rising * decay

    return schedule


def directions(config: OptimConfig, specs: Tree) -> optax.GradientTransformation:
    """clip by global norm -> Adam -> decoupled decay (Loshchilov & Hutter 2019): the update for a learning rate of -1.

    `specs` are the ParamSpecs of what is trained, whose roles say what decays.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=map_specs(lambda spec: spec.decayed, specs)),
    )
