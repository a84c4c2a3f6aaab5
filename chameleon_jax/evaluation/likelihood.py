"""Log-likelihood of given continuations: what captioning and choice tasks are scored by.

Sequences are sorted by length and cut into batches of few fixed shapes, and the logits of a batch exist a block of
positions at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from chameleon_jax.configs import GenerationConfig, TransformerConfig
from chameleon_jax.errors import GenerationError
from chameleon_jax.generation.api import Given, as_part
from chameleon_jax.generation.checks import check_pictures
from chameleon_jax.generation.loading import Run
from chameleon_jax.generation.prompt import build_request
from chameleon_jax.models import perception, transformer
from chameleon_jax.models.perception import stack_pictures
from chameleon_jax.models.transformer import Params
from chameleon_jax.parallel.mesh import DECODING, batch_shards, mesh_of, using
from chameleon_jax.vocab import Vocab

LENGTH_STEP = 64  # batches are as long as their longest sequence, rounded up to it
LOGIT_TOKENS = 1024  # at most so many tokens have logits at one time


def score(
    weights: Params,
    model_config: TransformerConfig,
    sequences: Sequence[Int[np.ndarray, "_"]],
    starts: Sequence[int],
    *,
    vocab: Vocab | None = None,
    pictures: Sequence[Sequence[UInt8[np.ndarray, "side side 3"]]] | None = None,
    batch_size: int = 16,
) -> Float[np.ndarray, "n"]:
    """log p(sequence[start:] | sequence[:start]) in nats for each sequence and start, over the whole vocabulary.

    Runs on the mesh on which the weights lie, or the one in use. A model with untied parts or with pictures in patches needs the
    `vocab` of its ids; `pictures` are those that each sequence's spans of patches stand for.

    Raises GenerationError for a sequence longer than the context, ids that the model does not have, or a start that leaves
    nothing before it or behind it, and for a model that needs its vocabulary without it, and for pictures that do not
    belong to the spans.
    """
    sequences = [np.asarray(sequence) for sequence in sequences]
    if len(sequences) != len(starts):
        raise GenerationError(f"{len(sequences)} sequences have {len(starts)} starts; give one for each")
    for i, (sequence, begin) in enumerate(zip(sequences, starts, strict=True)):
        _check(i, sequence, begin, model_config)
    if (model_config.untied or model_config.perception or pictures is not None) and vocab is None:
        raise GenerationError("the model has parts by modality, or perceives pictures: give the vocabulary of its ids")
    if vocab is not None and (problem := perception.problem(model_config, vocab)):
        raise GenerationError(problem)
    pictures = [()] * len(sequences) if pictures is None else [tuple(seen) for seen in pictures]
    if len(pictures) != len(sequences):
        raise GenerationError(f"{len(sequences)} sequences have {len(pictures)} lists of pictures; give one for each")
    for i, (sequence, seen) in enumerate(zip(sequences, pictures, strict=True)):
        if vocab is not None:
            check_pictures(f"sequence {i}", sequence, seen, vocab, model_config)
    with using(mesh_of(weights)):
        return _score(weights, model_config, sequences, starts, pictures, batch_size, vocab)


def score_answer(run: Run, prompt: Sequence[Given], answer: Sequence[Given]) -> float:
    """log p(answer | prompt) in nats, of lists of strings, PIL pictures and segments as `generation.api.Generator` takes them.

    Raises GenerationError as `score` does, and where the words of both grow together into one piece.
    """
    given, whole = (
        build_request([as_part(part, run.bundle) for part in parts], run.bundle, GenerationConfig(mode="unrestricted"))
        for parts in (prompt, [*prompt, *answer])
    )
    start = len(given.prompt)
    if not np.array_equal(whole.prompt[:start], given.prompt):
        raise GenerationError("the end of the prompt and the begin of the answer are one piece: part them at a space")
    found = score(run.params, run.model, [whole.prompt], [start], vocab=run.bundle.vocab, pictures=[whole.pictures])
    return float(found[0])


def _score(
    weights: Params,
    model_config: TransformerConfig,
    sequences: Sequence[Int[np.ndarray, "_"]],
    starts: Sequence[int],
    pictures: Sequence[Sequence[np.ndarray]],
    batch_size: int,
    vocab: Vocab | None,
) -> Float[np.ndarray, "n"]:
    batch_size += -batch_size % batch_shards(DECODING)
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    scores = np.zeros(len(sequences), np.float32)
    most = max(map(len, pictures), default=0)
    for at in range(0, len(order), batch_size):
        rows = order[at : at + batch_size]
        longest = len(sequences[rows[-1]])
        width = min(-(-longest // LENGTH_STEP) * LENGTH_STEP, model_config.max_seq_len)
        tokens, lengths = np.zeros((batch_size, width), np.int32), np.zeros(batch_size, np.int32)
        begins = np.ones(batch_size, np.int32)
        for row, i in enumerate(rows):
            tokens[row, : len(sequences[i])], lengths[row], begins[row] = sequences[i], len(sequences[i]), starts[i]
        seen = stack_pictures([*(pictures[i] for i in rows), *[()] * (batch_size - len(rows))], most) if most else None
        found = _score_batch(weights, tokens, lengths, begins, seen, model_config, vocab)
        scores[rows] = np.asarray(found)[: len(rows)]
    return scores


def _check(index: int, sequence: np.ndarray, begin: int, model_config: TransformerConfig) -> None:
    if not 0 < begin < len(sequence):
        raise GenerationError(
            f"sequence {index} of {len(sequence)} ids has start {begin}; a start lies between 1 and {len(sequence) - 1}"
        )
    if len(sequence) > model_config.max_seq_len:
        raise GenerationError(
            f"sequence {index} has {len(sequence)} ids, the model's context holds {model_config.max_seq_len}"
        )
    if sequence.min() < 0 or sequence.max() >= model_config.vocab_size:
        raise GenerationError(
            f"sequence {index} has ids {int(sequence.min())}..{int(sequence.max())}; the model has {model_config.vocab_size}"
        )


@functools.partial(jax.jit, static_argnames=("config", "vocab"))
def _score_batch(
    weights: Params,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    begins: Int[Array, "B"],
    pictures: UInt8[Array, "B I side side 3"] | None,
    config: TransformerConfig,
    vocab: Vocab | None,
) -> Float[Array, "B"]:
    """Sum of the log-probabilities of the ids from `begins` to `lengths` of each row."""
    rows, width = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(width), (rows, width))
    segments = (positions < lengths[:, None]).astype(jnp.int32)
    modality = None if vocab is None else vocab.modality_of(tokens)
    seen = perception.inputs(weights, tokens, pictures, config, vocab, DECODING)
    out = transformer.forward(weights, tokens, positions, segments, config, modality=modality, **seen, rules=DECODING)
    hidden = out.hidden
    targets = jnp.roll(tokens, -1, axis=1)
    scored = (positions + 1 >= begins[:, None]) & (positions + 1 < lengths[:, None])
    block = max(1, LOGIT_TOKENS // rows)
    fill = -width % block

    def blocks(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, fill), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(rows, (width + fill) // block, block, *x.shape[2:]), 1, 0)

    def add(total: Float[Array, "B"], chunk: tuple[Array, Array, Array]) -> tuple[Float[Array, "B"], None]:
        hidden, targets, scored = chunk
        logits = transformer.logits(weights, hidden, config, DECODING)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        log_p = chosen - jax.nn.logsumexp(logits, axis=-1)
        return total + jnp.sum(jnp.where(scored, log_p, 0.0), axis=1), None

    return jax.lax.scan(add, jnp.zeros(rows), (blocks(hidden), blocks(targets), blocks(scored)))[0]
