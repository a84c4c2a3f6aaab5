"""The decoder: `init(key, config) -> params`, `forward(params, tokens, ..., config) -> hidden states`, `logits`.

One scanned block over stacked parameters serves training, evaluation, prefill, decoding and probing. What differs
(cache, dropout, taps) is an argument that is None when it is not wanted.

Llama-style (Touvron et al. 2023) with Chameleon's additions (section 2.3): QK-norm, swin norm order, dropout after attention and
feed-forward.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from chameleon_jax.configs import TransformerConfig
from chameleon_jax.errors import ConfigError
from chameleon_jax.models import kv_cache, params, perception, quantize, untied
from chameleon_jax.models.attention.mask import SAVED_NAME, MaskSpec
from chameleon_jax.models.attention.registry import attention, over_cache
from chameleon_jax.models.keys import fold_name, fold_number
from chameleon_jax.models.kv_cache import KVCache, LayerCache
from chameleon_jax.models.layers import (
    Product,
    apply_rotary,
    dropout,
    embed,
    linear,
    place,
    qk_norm,
    rms_norm,
    rotary_angles,
    swiglu,
)
from chameleon_jax.models.params import ParamSpec, Role
from chameleon_jax.models.quantize import Int8Matrix
from chameleon_jax.models.statistics import Statistics, sum_of_squares
from chameleon_jax.models.untied import Routes
from chameleon_jax.parallel import shards
from chameleon_jax.parallel.mesh import TRAINING, ShardingRules, constrain

Params = dict[str, Any]

# Raw activations that `forward` can return, each [B T D]; see `ForwardOutput.activations`.
ACTIVATIONS = ("attention_out", "mlp_out", "residual")


@flax.struct.dataclass
class ForwardOutput:
    """hidden: after the final norm. statistics: [L] fp32 each (None unless asked for).

    activations: name -> [selected layers, B, T, D] in the order of `tap_layers` (empty unless asked for).
    """

    hidden: Float[Array, "B T D"]
    statistics: Statistics | None
    activations: dict[str, Float[Array, "l B T D"]]
    cache: KVCache | None = None


def param_specs(config: TransformerConfig) -> dict[str, Any]:
    """The parameter tree as ParamSpecs; matrices N(0, init_std), the two that end a branch divided by sqrt(2 L)."""
    c = config
    residual_std = c.init_std / math.sqrt(2 * c.n_layers) if c.scale_residual_init else c.init_std

    def weight(axes: str, inputs: str, *shape: int, role: Role = "matrix", std: float = c.init_std) -> ParamSpec:
        return ParamSpec(shape=shape, axes=axes, inputs=inputs, role=role, init="normal", std=std, dtype=c.param_dtype)

    def norm(axes: str, *shape: int) -> ParamSpec:
        return ParamSpec(shape=shape, axes=axes, role="norm", init="ones", dtype=c.param_dtype)

    attn = {
        "wq": weight("L D N H", "D", c.n_layers, c.d_model, c.n_heads, c.head_dim),
        "wk": weight("L D K H", "D", c.n_layers, c.d_model, c.n_kv_heads, c.head_dim),
        "wv": weight("L D K H", "D", c.n_layers, c.d_model, c.n_kv_heads, c.head_dim),
        "wo": weight("L N H D", "N H", c.n_layers, c.n_heads, c.head_dim, c.d_model, std=residual_std),
    }
    if c.qk_norm:
        for name, groups in (("q_norm", c.qk_norm_groups), ("k_norm", c.k_norm_groups)):
            shape = (c.n_layers, groups, c.head_dim)
            bias = ParamSpec(shape=shape, axes="L g H", role="bias", init="zeros", dtype=c.param_dtype)
            attn[name] = {"scale": norm("L g H", *shape), "bias": bias}
    if not c.vocab_size:
        raise ConfigError("vocab_size is 0: it has to be set where no token stores tell it")
    mlp = {
        "gate": weight("L D F", "D", c.n_layers, c.d_model, c.d_ff),
        "up": weight("L D F", "D", c.n_layers, c.d_model, c.d_ff),
        "down": weight("L F D", "F", c.n_layers, c.d_ff, c.d_model, std=residual_std),
    }

    def part(name: str, specs: Any) -> Any:
        """The specs of a part, by modality if it is untied."""
        return params.map_specs(lambda spec: spec.by_modality(c.modalities), specs) if name in c.untied else specs

    specs = {
        "embed": weight("V D", "", c.vocab_size, c.d_model, role="embedding"),
        "layers": {
            "attn": part("attention", attn),
            "attn_norm": part("norms", norm("L D", c.n_layers, c.d_model)),
            "mlp": part("mlp", mlp),
            "mlp_norm": part("norms", norm("L D", c.n_layers, c.d_model)),
        },
        "norm": part("norms", norm("D", c.d_model)),
        "head": weight("D V", "D", c.d_model, c.vocab_size, role="head"),
    }
    if c.perception is not None:
        specs["perception"] = perception.param_specs(c.perception, c.d_model, c.param_dtype)
    return specs


def by_layer_specs(config: TransformerConfig) -> dict[str, Any]:
    """`param_specs` of the tree that `by_layer` gives."""
    specs = param_specs(config)
    layer = params.map_specs(lambda spec: spec.layer, specs["layers"])
    return specs | {"layers": (layer,) * config.n_layers}


def init(key: jax.Array, config: TransformerConfig) -> Params:
    """Initial parameters. Jit it with `params.shardings` as out_shardings to create them in place."""
    return params.initialise(key, param_specs(config))


def by_layer(weights: Params) -> Params:
    """The weights with a tuple of layers in place of stacked ones, the form for decoding; given such, the same."""
    layers = weights["layers"]
    if isinstance(layers, dict):
        layers = tuple(layer_of(layers, i) for i in range(len(layers["attn_norm"])))
    return weights | {"layers": layers}


def layer_of(stacked: Any, index: int) -> Any:
    """One layer of stacked leaves; outside jit, one program for all layers."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), stacked)


@flax.struct.dataclass
class _Stream:
    """What every layer needs and no layer changes."""

    cos: Float[Array, "B T H/2"]
    sin: Float[Array, "B T H/2"]
    mask: MaskSpec
    slots: Int[Array, "B T"] | None  # cache slot of each token; None without a cache
    real: Float[Array, "B T"]  # 1 for tokens, 0 for padding
    routes: Routes | None  # None without untied parts
    dropout_key: jax.Array | None
    statistics: bool = flax.struct.field(pytree_node=False)
    rules: ShardingRules = flax.struct.field(pytree_node=False)


def forward(
    weights: Params,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    config: TransformerConfig,
    *,
    modality: Int[Array, "B T"] | None = None,
    vectors: Float[Array, "B P D"] | None = None,
    vector_index: Int[Array, "B T"] | None = None,
    dropout_key: jax.Array | None = None,
    cache: KVCache | None = None,
    visible: int | None = None,
    statistics: bool = False,
    tap_layers: tuple[int, ...] = (),
    rules: ShardingRules = TRAINING,
) -> ForwardOutput:
    """Run the decoder.

    `modality` is the row of the modality table of every token, which chooses its parameters where `config.untied` names parts;
    without such parts it is not looked at. Where `vector_index` is not negative, the position holds that one of its row's `vectors`
    (of `perception.encode`) instead of its token's embedding.
    Without `cache`, a token sees the earlier tokens of its own segment. With it, `positions` are also cache slots, the new keys
    and values are written there, and a token sees every slot up to its own, which must have been filled; a token of segment 0
    (padding) is not written. No token may lie at slot `visible` or behind: the rest of the cache is not looked at.
    `statistics` adds per-layer norms and the largest attention logit; `tap_layers` returns the raw activations of those layers.
    Dropout is applied only when `dropout_key` is given, one or one for each row. `rules` say how activations lie on the mesh in
    use. `logits` maps the hidden states to the vocabulary.
    """
    x = embed(weights["embed"], tokens, config.compute_dtype, rules)
    if vectors is not None:
        x = constrain(place(x, vectors, vector_index), "B t D", rules)
    slots = None
    mask = MaskSpec(query_segments=segment_ids, key_segments=segment_ids)
    if cache is not None:
        visible = cache.slots if visible is None else min(visible, cache.slots)
        slots = jnp.where(segment_ids > 0, positions, cache.slots)
        seen = jnp.ones((tokens.shape[0], visible), segment_ids.dtype)
        mask = MaskSpec(query_segments=jnp.ones_like(segment_ids), key_segments=seen, query_slots=positions)
    cos, sin = rotary_angles(positions, config.head_dim, config.rope_theta)
    stream = _Stream(
        cos=cos,
        sin=sin,
        mask=mask,
        slots=slots,
        real=(segment_ids > 0).astype(jnp.float32),
        routes=untied.route(modality, segment_ids, config.modalities, rules) if config.untied else None,
        dropout_key=dropout_key,
        statistics=statistics,
        rules=rules,
    )
    block = _rematerialised(lambda x, layer: _block(x, layer, stream, config), config.remat)

    # A chosen layer has a place in the tap buffers, the others one beyond their end, where writes are dropped.
    places = [tap_layers.index(i) if i in tap_layers else len(tap_layers) for i in range(config.n_layers)]
    taps = {name: jnp.zeros((len(tap_layers), *x.shape), x.dtype) for name in ACTIVATIONS} if tap_layers else {}

    def step(carry: tuple[Array, dict[str, Array]], layer: dict[str, Any]) -> tuple[Any, Any]:
        x, taps = carry
        out = block(x, layer)
        if taps:
            place = jnp.asarray(places)[layer["index"]]
            taps = {name: tap.at[place].set(getattr(out, name), mode="drop") for name, tap in taps.items()}
        return (out.residual, taps), (out.statistics, out.cache)

    layers = weights["layers"]
    if cache is None and isinstance(layers, dict):
        layers = {"weights": layers, "index": jnp.arange(config.n_layers)}
        (x, taps), (stats, _) = jax.lax.scan(step, (x, taps), layers, unroll=config.scan_unroll)
    else:
        # A scan would copy each layer's weights out of the stack, which costs as much as using them for one token.
        layers = by_layer(weights)["layers"]
        caches = [None] * config.n_layers if cache is None else cache.layers
        made = []
        for index, (layer, old) in enumerate(zip(layers, caches, strict=True)):
            (x, taps), extra = step((x, taps), {"weights": layer, "index": index, "cache": old})
            made.append(extra)
        stats = jax.tree.map(lambda *values: jnp.stack(values), *(stats for stats, _ in made))
        cache = None if cache is None else KVCache(layers=tuple(new for _, new in made))
    final_norm = params.gathered(weights["norm"], param_specs(config)["norm"], config.compute_dtype, rules)
    return ForwardOutput(
        hidden=_rms_norm(x, final_norm, stream, config),
        statistics=stats,
        activations=taps,
        cache=cache,
    )


@flax.struct.dataclass
class _BlockOutput:
    attention_out: Float[Array, "B T D"]
    mlp_out: Float[Array, "B T D"]
    residual: Float[Array, "B T D"]
    statistics: Statistics | None
    cache: LayerCache | None


def _block(x: Float[Array, "B T D"], layer: dict[str, Any], stream: _Stream, config: TransformerConfig) -> _BlockOutput:
    specs = params.map_specs(lambda spec: spec.layer, param_specs(config)["layers"])
    late = "matrix" if _gathers_late(config) else None
    weights = params.gathered(layer["weights"], specs, config.compute_dtype, stream.rules, but=late)

    def dropped(branch: Array, name: str) -> Array:
        if stream.dropout_key is None:
            return branch
        key = fold_name(fold_number(stream.dropout_key, layer["index"]), name)
        return dropout(branch, config.dropout, key)

    def normed(function: Any, x: Array, scale: Array) -> tuple[Array, Any]:
        """The branch in the chosen norm order, and what the function returns beside its output."""
        if config.norm_order == "pre":
            return function(_rms_norm(x, scale, stream, config))
        # swin: the norm sits on the branch's output (Chameleon, section 2.3.1; Liu et al. 2021)
        out, extra = function(x)
        return _rms_norm(out, scale, stream, config), extra

    attend = functools.partial(
        _attention, weights=weights["attn"], cache=layer.get("cache"), stream=stream, config=config
    )
    attention_out, (seen, cache) = normed(attend, x, weights["attn_norm"])
    x = constrain(x + dropped(attention_out, "attention"), "B t D", stream.rules)
    mlp_out, _ = normed(lambda y: (_mlp(y, weights["mlp"], stream, config), None), x, weights["mlp_norm"])
    x = constrain(x + dropped(mlp_out, "mlp"), "B t D", stream.rules)
    stats = None
    if stream.statistics:
        seen |= {"attention_out": attention_out, "mlp_out": mlp_out, "residual": x}
        stats = Statistics(
            maxima={"max_attention_logit": seen.pop("max_attention_logit")},
            squares={f"{name}_rms": sum_of_squares(value, stream.real) for name, value in seen.items()},
            tokens=jnp.sum(stream.real),
        )
    return _BlockOutput(attention_out=attention_out, mlp_out=mlp_out, residual=x, statistics=stats, cache=cache)


def _rms_norm(
    x: Float[Array, "B T D"], scale: Float[Array, "*E D"], stream: _Stream, config: TransformerConfig
) -> Float[Array, "B T D"]:
    modality = stream.routes.modality if "norms" in config.untied else None
    return rms_norm(x, scale, config.norm_eps, round_early=config.numerics.round_norms, modality=modality)


def _mlp(
    x: Float[Array, "B T D"], weights: dict[str, Any], stream: _Stream, config: TransformerConfig
) -> Float[Array, "B T D"]:
    product, enter, leave = _products("mlp", stream, config)
    return leave(swiglu(enter(x), weights, stream.rules, product))


def _products(part: str, stream: _Stream, config: TransformerConfig) -> tuple[Product, Any, Any]:
    """How a part multiplies: its product, and the functions that bring positions into the order of products and back."""
    routes, rules = stream.routes, stream.rules
    is_untied = part in config.untied

    def product(x: Array, kernel: Any, axes: str) -> Array:
        if _gathers_late(config):
            kernel = shards.gathered(kernel, f"E {axes}" if is_untied else axes, rules, config.compute_dtype)
        return untied.product(x, kernel, axes, routes, rules) if is_untied else linear(x, kernel)

    if _gathers_late(config):
        product = jax.checkpoint(product, prevent_cse=False, static_argnums=2)
    if not is_untied:
        return product, lambda x: x, lambda x: x
    return (
        product,
        lambda x: untied.to_places(x, routes),
        lambda x: untied.to_positions(x, routes),
    )


def _attention(
    x: Float[Array, "B T D"],
    weights: dict[str, Any],
    cache: LayerCache | None,
    stream: _Stream,
    config: TransformerConfig,
) -> tuple[Float[Array, "B T D"], tuple[dict[str, Array], LayerCache | None]]:
    """Output projection of attention, and (what statistics look at, the layer's cache with the new keys and values)."""
    product, enter, leave = _products("attention", stream, config)
    x = enter(x)
    q = constrain(leave(product(x, weights["wq"], "D N H")), "B T N H", stream.rules)
    k = constrain(leave(product(x, weights["wk"], "D K H")), "B T K H", stream.rules)
    v = constrain(leave(product(x, weights["wv"], "D K H")), "B T K H", stream.rules)
    seen = {"q": q, "k": k}
    if config.qk_norm:
        modality = stream.routes.modality if "attention" in config.untied else None
        q = qk_norm(q, **weights["q_norm"], round_early=config.numerics.round_norms, modality=modality)
        k = qk_norm(k, **weights["k_norm"], round_early=config.numerics.round_norms, modality=modality)
    q, k = apply_rotary(q, stream.cos, stream.sin), apply_rotary(k, stream.cos, stream.sin)
    k, v = jnp.moveaxis(k, 1, 2), jnp.moveaxis(v, 1, 2)
    if cache is not None:
        cache = kv_cache.write(cache, k, v, stream.slots, stream.rules)
        k, v = kv_cache.read(cache, stream.mask.key_segments.shape[1], stream.rules)
    out = attention(
        q,
        k,
        v,
        stream.mask,
        backend=config.attention if cache is None else over_cache(config.attention),
        chunk=config.attention_chunk,
        max_logit=stream.statistics,
        rules=stream.rules,
    )
    seen["max_attention_logit"] = out.max_logit
    values = leave(product(enter(out.values), weights["wo"], "N H D"))
    return constrain(values, "B t D", stream.rules), (seen, cache)


def logits(
    weights: Params, hidden: Float[Array, "B T D"], config: TransformerConfig, rules: ShardingRules = TRAINING
) -> Float[Array, "B T V"]:
    """fp32 logits: operands in the dtype of `hidden`, summed in fp32, also with a head of eight bits.

    Training uses `losses.cross_entropy` instead.

    `config.numerics` says whether they are rounded and masked as in a released implementation; the training loss never does either.
    """
    numerics = config.numerics
    head = weights["head"]
    if isinstance(head, Int8Matrix):
        out = quantize.product(hidden.reshape(-1, hidden.shape[-1]), head).reshape(*hidden.shape[:2], -1)
    else:
        out = jnp.einsum("btd,dv->btv", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
    if numerics.round_logits:
        out = out.astype(hidden.dtype).astype(jnp.float32)
    if numerics.masked_ids:
        start, stop = numerics.masked_ids
        out = out.at[..., start:stop].set(float(jnp.finfo(hidden.dtype).min))
    return constrain(out, "B T V", rules)


def flops_per_token(config: TransformerConfig, seq_len: int) -> float:
    """Forward and backward FLOPs of one token: 6 N without the embedding, plus causal attention 6 L N H T.

    Half of the T x T scores exist under a causal mask; PaLM, appendix B counts all of them. Of untied parts, N counts what one
    token uses: the parameters of one modality. The encoder of pictures is not counted.
    """
    specs = {name: part for name, part in param_specs(config).items() if name != "perception"}
    active = params.map_specs(lambda spec: spec.tied, specs)
    matrices = params.count(active) - config.vocab_size * config.d_model
    return 6.0 * matrices + 6.0 * config.n_layers * config.n_heads * config.head_dim * seq_len


def _gathers_late(config: TransformerConfig) -> bool:
    """Whether every product gathers its own matrix: a block that keeps what its backward pass needs must keep the part alone."""
    return config.remat == "none" and shards.inside()


def _rematerialised(block: Any, policy: str) -> Any:
    policies = jax.checkpoint_policies
    if policy == "none":
        return block
    chosen = {
        "full": policies.nothing_saveable,
        "dots": policies.save_from_both_policies(
            policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(untied.SAVED_NAME)
        ),
        "attention": policies.save_only_these_names(SAVED_NAME),
    }[policy]
    return jax.checkpoint(block, policy=chosen, prevent_cse=False)
