"""Prompts in, ids out: prefill, then a decode loop that stays on the device.

The one idea: a row of the batch is its own request. Its position is its cache slot, its grammar state says what may come, and the
key of a draw is fold_in(fold_in(seed, row id), position); nothing of it depends on the rows beside it. The loop runs in blocks of
many tokens without asking the host.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from chameleon_jax.configs import GenerationConfig, TransformerConfig
from chameleon_jax.errors import GenerationError
from chameleon_jax.generation import grammar
from chameleon_jax.generation.grammar import MODES, OUTSIDE, FinishReason, GrammarState, TokenSpan
from chameleon_jax.generation.sampling import Settings, sample, seen_ids
from chameleon_jax.models import kv_cache, transformer
from chameleon_jax.models.kv_cache import KVCache
from chameleon_jax.models.params import map_specs
from chameleon_jax.models.transformer import Params
from chameleon_jax.parallel.mesh import batch_shards
from chameleon_jax.vocab import MODALITY_NAMES, GridSpan, SpanGrammar, Vocab

SHAPE_STEP = 64  # prompt and cache lengths are rounded up to it: few shapes, few compilations
BLOCK = 128  # tokens a row between two looks of the host


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generated:
    """One row's output: ids without the prompt (the id that ended it included), and why it stopped.

    `eos` means that the model ended the sequence or, where the request lets it, its turn; `images` that all images asked for are
    there; `length` that no position was left for more.
    """

    ids: Int[np.ndarray, "n"]
    finish_reason: Literal["eos", "length", "images"]


@flax.struct.dataclass
class DecodeState:
    """Everything that a decoded token changes or needs, beside the weights; S cache slots.

    `ids` holds prompt and output, `length` counts both; the last id has not been through the model yet. `settings` are those of
    every modality, `seen` marks the ids of prompt and output. `finite` turns False where the model gave logits that are not
    numbers.
    """

    cache: KVCache
    grammar: GrammarState
    ids: Int[Array, "B S"]
    length: Int[Array, "B"]
    keys: Key[Array, "B"]
    settings: Settings
    seen: Bool[Array, "B V"]
    finite: Bool[Array, "B"]


def generate(
    weights: Params,
    model_config: TransformerConfig,
    vocab: Vocab,
    prompts: Sequence[Int[np.ndarray, "_"]],
    config: GenerationConfig,
    *,
    row_ids: Sequence[int] | None = None,
) -> list[Generated]:
    """Continue every prompt. All rows run together, each until it ends by itself.

    A prompt is ids, usually from `prompt.build_prompt`. It may end in a begin-of-image marker, in a grid vocabulary also in the
    height, or height and width, behind it: then that image is written first. In mode `image` the marker is written, as the first
    id of the output, if the prompt lacks it. `row_ids` are the numbers by which rows draw (0, 1, ... by default, none negative):
    a prompt with the same seed and row id gives the same output in any batch, to the rounding of its logits.

    Raises GenerationError, before anything is compiled, for a prompt that cannot be served.
    """
    prompts = [np.asarray(prompt) for prompt in prompts]
    if not prompts:
        return []
    if model_config.vocab_size < vocab.size:
        raise GenerationError(
            f"the model has {model_config.vocab_size} ids, the vocabulary {vocab.size}: they are not of one run"
        )
    row_ids = range(len(prompts)) if row_ids is None else row_ids
    if len(row_ids) != len(prompts):
        raise GenerationError(f"{len(prompts)} prompts have {len(row_ids)} row ids; give one for each")
    _check_grid(vocab, config)
    checked = [_check_prompt(i, prompt, vocab, model_config, config) for i, prompt in enumerate(prompts)]
    state = _start(weights, model_config, vocab, prompts, config, row_ids, checked)
    weights = _compute_copies(weights, model_config)
    while bool(jnp.any(state.grammar.finish == FinishReason.RUNNING)):
        state = _decode(weights, state, BLOCK, model_config, vocab)

    ids, length, finish, finite = jax.device_get((state.ids, state.length, state.grammar.finish, state.finite))
    if not finite.all():
        raise GenerationError(
            f"the model gave logits that are not finite for prompt {int(np.argmin(finite))}: its weights are damaged or diverged"
        )
    return [
        Generated(ids=ids[i, len(prompt) : length[i]], finish_reason=FinishReason(int(finish[i])).name.lower())
        for i, prompt in enumerate(prompts)
    ]


@dataclasses.dataclass(frozen=True)
class _Checked:
    """What checking a prompt found: ids that may come, the marked span that it leaves open, and the sizes said there."""

    remaining: int
    opened: int = OUTSIDE
    grid: tuple[int, int] = (0, 0)


def _check_grid(vocab: Vocab, config: GenerationConfig) -> None:
    """Raise GenerationError when images cannot have the size that is asked for."""
    grammar = vocab.image.grammar
    if not config.image_grid:
        return
    if not isinstance(grammar, GridSpan):
        raise GenerationError(
            f"image_grid asks for {config.image_grid} codes, but every image of this vocabulary has {grammar.length} codes: "
            "leave it out"
        )
    if problem := grammar.problem(*config.image_grid):
        raise GenerationError(f"image_grid asks for {problem}")


def _check_prompt(
    index: int, prompt: np.ndarray, vocab: Vocab, model_config: TransformerConfig, config: GenerationConfig
) -> _Checked:
    """Raise GenerationError for a prompt that cannot be continued in this mode."""
    where = f"prompt {index}"
    if prompt.ndim != 1 or len(prompt) == 0:
        raise GenerationError(
            f"{where} is empty or not a list of ids (shape {prompt.shape}); begin with id {vocab.bos}"
        )
    if not np.issubdtype(prompt.dtype, np.integer):
        raise GenerationError(f"{where} holds {prompt.dtype} numbers; ids are integers")
    if prompt.min() < 0 or prompt.max() >= vocab.size:
        raise GenerationError(
            f"{where} has ids {int(prompt.min())}..{int(prompt.max())}; the vocabulary ends at {vocab.size - 1}"
        )
    if (prompt == vocab.pad).any():
        raise GenerationError(f"{where} holds the padding id {vocab.pad}; pass it without padding")
    if len(prompt) >= model_config.max_seq_len:
        raise GenerationError(
            f"{where} has {len(prompt)} ids; the model's context of {model_config.max_seq_len} leaves no room to continue"
        )
    opened = _opened(where, prompt, vocab, config)
    remaining = min(config.max_tokens, model_config.max_seq_len - len(prompt))
    needed, wanted = 0, config.image_grid or (0, 0)
    if opened is not None:
        grid = tuple(said or asked for said, asked in zip(opened.grid, wanted, strict=True))
        needed = grammar.span_tokens(vocab.modalities[opened.modality], grid) - len(opened.ids)
    elif config.mode == "image":
        needed = grammar.span_tokens(vocab.image, wanted)
    if remaining < needed:
        raise GenerationError(
            f"{where} has {len(prompt)} ids and leaves room for {remaining} (max_tokens {config.max_tokens}, context "
            f"{model_config.max_seq_len}); an image needs {needed}"
        )
    return _Checked(remaining) if opened is None else _Checked(remaining, int(opened.modality), opened.grid)


def _opened(where: str, prompt: np.ndarray, vocab: Vocab, config: GenerationConfig) -> TokenSpan | None:
    """The marked span whose beginning ends the prompt, or None; raises GenerationError for a span that is cut."""
    at, opened = 0, None
    for span in grammar.split_spans(prompt, vocab):
        modality = vocab.modalities[span.modality]
        at += len(span.ids)
        begun = modality.begin_marker is None or span.ids[0] == modality.begin_marker
        sizes = sum(side > 0 for side in span.grid)
        if at == len(prompt) and begun and not span.complete and len(span.ids) == 1 + sizes:
            opened = span
        elif not (span.complete and begun):
            raise GenerationError(
                f"{where} has a cut {modality.name} at id {at - len(span.ids)}: {_measure(span, modality.grammar)}; give whole "
                "spans with both markers"
            )
    if opened is None:
        return None
    name = MODALITY_NAMES[opened.modality]
    if opened.modality not in MODES[config.mode]:
        raise GenerationError(f"{where} ends in the beginning of an {name}, which mode '{config.mode}' cannot write")
    grid = vocab.modalities[opened.modality].grammar
    if isinstance(grid, GridSpan) and opened.grid[0]:
        height, width = opened.grid
        if problem := grid.problem(height, width or grid.unit):
            raise GenerationError(f"{where} ends in the beginning of an {name} of {problem}")
        if config.image_grid and any(
            said not in (0, asked) for said, asked in zip(opened.grid, config.image_grid, strict=True)
        ):
            raise GenerationError(
                f"{where} ends in the beginning of an {name} of {opened.grid} codes (height, width), image_grid asks for "
                f"{config.image_grid}"
            )
    return opened


def _measure(span: TokenSpan, grammar: SpanGrammar) -> str:
    """What a cut span holds, for the reader of an error."""
    if isinstance(grammar, GridSpan):
        return f"{len(span.content)} codes that do not fill {span.grid[0]} rows of {span.grid[1]}"
    return f"{len(span.content)} of {grammar.length} codes"


def _start(
    weights: Params,
    model_config: TransformerConfig,
    vocab: Vocab,
    prompts: list[np.ndarray],
    config: GenerationConfig,
    row_ids: Sequence[int],
    checked: list[_Checked],
) -> DecodeState:
    """Lay the prompts out as one padded batch, and prefill."""
    # Rows that fill up the last shard of the mesh: one id, finished from the start.
    fill = -len(prompts) % batch_shards()
    prompts = [*prompts, *[np.array([vocab.bos])] * fill]
    row_ids = [*row_ids, *[0] * fill]
    checked = [*checked, *[_Checked(0)] * fill]
    longest = max(len(prompt) + c.remaining for prompt, c in zip(prompts, checked, strict=True))
    slots = min(_round_up(longest), model_config.max_seq_len)
    width = min(_round_up(max(map(len, prompts))), slots)
    ids = np.full((len(prompts), slots), vocab.pad, np.int32)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    lengths = jnp.asarray([len(prompt) for prompt in prompts], jnp.int32)
    seed = jax.random.key(config.seed)
    return DecodeState(
        cache=_prefill(weights, jnp.asarray(ids[:, :width]), lengths, slots, model_config),
        grammar=grammar.start(
            vocab,
            config,
            np.array([c.remaining for c in checked], np.int32),
            np.array([c.opened for c in checked], np.int32),
            np.array([c.grid for c in checked], np.int32),
        ),
        ids=jnp.asarray(ids),
        length=lengths,
        keys=jax.vmap(lambda row: jax.random.fold_in(seed, row))(jnp.asarray(row_ids, jnp.uint32)),
        settings=Settings.of([config] * len(prompts)),
        seen=seen_ids(jnp.asarray(ids), lengths, model_config.vocab_size),
        finite=jnp.ones(len(prompts), bool),
    )


def _round_up(length: int) -> int:
    return -(-length // SHAPE_STEP) * SHAPE_STEP


@functools.partial(jax.jit, static_argnames=("config",))
def _compute_copies(weights: Params, config: TransformerConfig) -> Params:
    """The weights, matrices in the compute dtype, as `forward` would cast them for every token; norms stay as they are."""
    is_matrix = map_specs(lambda spec: spec.init == "normal", transformer.param_specs(config))
    return jax.tree.map(lambda w, matrix: w.astype(config.compute_dtype) if matrix else w, weights, is_matrix)


@functools.partial(jax.jit, static_argnames=("slots", "config"))
def _prefill(
    weights: Params, prompts: Int[Array, "B P"], lengths: Int[Array, "B"], slots: int, config: TransformerConfig
) -> KVCache:
    """Keys and values of all prompt ids but the last of each row, which the first decode step puts in."""
    rows, width = prompts.shape
    positions = jnp.broadcast_to(jnp.arange(width), (rows, width))
    segments = (positions < lengths[:, None] - 1).astype(jnp.int32)
    empty = kv_cache.create(config, rows, slots)
    return transformer.forward(weights, prompts, positions, segments, config, cache=empty).cache


@functools.partial(jax.jit, static_argnames=("config", "vocab"), donate_argnames=("state",))
def _decode(weights: Params, state: DecodeState, steps: int, config: TransformerConfig, vocab: Vocab) -> DecodeState:
    """Up to `steps` more ids for every running row; stops early when none runs."""

    def unfinished(carry: tuple[Array, DecodeState]) -> Bool[Array, ""]:
        step, state = carry
        return (step < steps) & jnp.any(state.grammar.finish == FinishReason.RUNNING)

    def step_forward(carry: tuple[Array, DecodeState]) -> tuple[Array, DecodeState]:
        step, state = carry
        return step + 1, _decode_one(weights, state, config, vocab)

    return jax.lax.while_loop(unfinished, step_forward, (jnp.int32(0), state))[1]


def _decode_one(weights: Params, state: DecodeState, config: TransformerConfig, vocab: Vocab) -> DecodeState:
    rows = jnp.arange(state.ids.shape[0])
    running = state.grammar.finish == FinishReason.RUNNING
    position = (state.length - 1)[:, None]
    last = state.ids[rows[:, None], position]
    segments = running.astype(jnp.int32)[:, None]
    out = transformer.forward(weights, last, position, segments, config, cache=state.cache)
    logits = transformer.logits(weights, out.hidden, config)[:, 0]

    token = sample(
        jnp.nan_to_num(logits),
        grammar.allowed(state.grammar, vocab, config.vocab_size),
        state.settings.at(state.grammar.modality),
        state.seen,
        jax.vmap(jax.random.fold_in)(state.keys, state.length),
    )
    # A finished row writes beyond the end, where writes are dropped.
    slot = jnp.where(running, state.length, state.ids.shape[1])
    return state.replace(
        cache=out.cache,
        grammar=grammar.advance(state.grammar, token, vocab),
        ids=state.ids.at[rows, slot].set(token, mode="drop"),
        length=state.length + running,
        seen=state.seen.at[rows, token].set(True),
        finite=state.finite & (jnp.isfinite(logits).all(axis=-1) | ~running),
    )
