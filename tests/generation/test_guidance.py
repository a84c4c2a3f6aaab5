"""Guided spans against a loop on the host that runs every context anew for every token."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.configs import (
    GenerationConfig,
    GuidanceConfig,
    ModalityConfig,
    SamplingConfig,
    TransformerConfig,
    VocabConfig,
    text_and_image,
)
from chameleon_jax.errors import GenerationError
from chameleon_jax.generation import grammar
from chameleon_jax.generation.engine import generate
from chameleon_jax.generation.grammar import OUTSIDE, FinishReason
from chameleon_jax.generation.scheduler import lanes_needed
from chameleon_jax.models import transformer
from chameleon_jax.models.params import map_specs
from chameleon_jax.vocab import GridSpan, Vocab

FIXED = Vocab.from_config(text_and_image(image_codes=16, reserved=4, text_tokens=256, codes_per_image=4))
GRID = Vocab.from_config(
    text_and_image(
        image_codes=16, reserved=16, text_tokens=256, codes_per_image=16, image_span="grid", max_grids=3, grid_unit=1
    )
)
OTHER = Vocab.from_config(
    VocabConfig(
        modalities=(
            ModalityConfig(name="words", ids=256, span="free", codec="bpe"),
            ModalityConfig(name="moves", ids=5, span="free"),
            ModalityConfig(name="beeps", ids=9, length=4),
            ModalityConfig(name="drawings", ids=16, span="grid", length=16, max_grids=3, grid_unit=1, codec="vqgan"),
        ),
        reserved=4,
    )
)
CONTEXT = 48
GREEDY = SamplingConfig(temperature=0.0, top_p=1.0)


def model_of(vocab):
    return TransformerConfig(
        vocab_size=vocab.size,
        d_model=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        d_ff=48,
        max_seq_len=CONTEXT,
        compute_dtype="float32",
        init_std=0.3,
    )


def begin_markers(vocab):
    """Begin marker of each modality that has one, and the modality."""
    return {modality.begin_marker: modality for modality in vocab.marked.values()}


@functools.cache
def weights_of(vocab):
    """Random weights, keen to begin spans."""
    random = np.random.default_rng(0)
    fixed = {"ones": np.ones, "zeros": np.zeros}

    def draw(spec):
        values = fixed[spec.init](spec.shape) if spec.init in fixed else random.normal(scale=spec.std, size=spec.shape)
        return jnp.asarray(values, jnp.float32)

    weights = map_specs(draw, transformer.param_specs(model_of(vocab)))
    embed = weights["embed"].at[:, 0].set(2.0)
    head = weights["head"].at[0].set(0.0).at[0, jnp.array(list(begin_markers(vocab)))].set(8.0)
    return weights | {"embed": embed, "head": head}


@functools.cache
def logits_of(vocab):
    model, weights = model_of(vocab), weights_of(vocab)

    @jax.jit
    def run(tokens):
        ones, positions = jnp.ones((1, CONTEXT), jnp.int32), jnp.arange(CONTEXT)[None]
        hidden = transformer.forward(weights, tokens[None], positions, ones, model).hidden
        return transformer.logits(weights, hidden, model)[0]

    def last(ids):
        padded = np.zeros(CONTEXT, np.int32)
        padded[: len(ids)] = ids
        return np.asarray(run(padded), np.float64)[len(ids) - 1]

    return last


def contexts(ids, vocab, scheme):
    """(spans, bare) of a sequence that stands inside a span, from the published rules."""
    begins = begin_markers(vocab)
    markers = {vocab.bos, *begins, *(modality.end_marker for modality in begins.values())}
    spans = [i for i in ids if i in markers or any(m.counts(np.array(i)) for m in begins.values())]
    begin = max(at for at, id in enumerate(ids) if id in begins)
    bare = ids[begin:] if scheme == "lumina" else [vocab.bos, *ids[begin:]]
    return spans, bare


def by_hand(vocab, prompt, config):
    last, guidance = logits_of(vocab), config.guidance
    allowed, advance = jax.jit(grammar.allowed, static_argnums=(1, 2)), jax.jit(grammar.advance, static_argnums=2)
    state = grammar.start(vocab, config, np.array([config.max_tokens]), np.array([OUTSIDE]))
    ids, guided = list(map(int, prompt)), 0
    while state.finish[0] == FinishReason.RUNNING:
        logits = last(ids)
        emitted = int(state.emitted[0])
        opened = int(state.open[0])
        is_grid = opened != OUTSIDE and isinstance(vocab.modalities[opened].grammar, GridSpan)
        sizes = 2 if guidance.scheme == "lumina" and is_grid else 0
        if opened != OUTSIDE and emitted >= sizes:
            spans, bare = contexts(ids, vocab, guidance.scheme)
            u = last(bare)
            i = u if guidance.scheme == "lumina" else last(spans)
            logits = u + guidance.image * (i - u) + guidance.text * (logits - i)
            guided += 1
        mask = np.asarray(allowed(state, vocab, vocab.size))[0]
        ids.append(int(np.argmax(np.where(mask, logits, -np.inf))))
        state = advance(state, np.array([ids[-1]]), vocab)
    return ids[len(prompt) :], guided


def first_marked(vocab):
    return next(iter(vocab.marked.values()))


def whole_span(vocab, code=3):
    modality = first_marked(vocab)
    codes = np.full((2, 2), code) if isinstance(modality.grammar, GridSpan) else np.arange(4) + code
    return modality.span(codes).tolist()


PROMPTS = {
    "words": lambda vocab: [vocab.bos, vocab.text.start + 5, vocab.text.start + 9],
    "words and a span": lambda vocab: [vocab.bos, vocab.text.start + 5, *whole_span(vocab), vocab.text.start + 2],
    "nothing": lambda vocab: [vocab.bos],
    "a span that has begun": lambda vocab: [vocab.bos, vocab.text.start + 1, first_marked(vocab).begin_marker],
}


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize(
    ("vocab", "scheme", "mode", "spans"),
    [
        (FIXED, "meta", "interleaved", 3),
        (FIXED, "meta", "image", 1),
        (GRID, "lumina", "interleaved", 2),
        (GRID, "meta", "image", 2),
        (OTHER, "meta", "interleaved", 2),
        (OTHER, "meta", "beeps+drawings", 1),
        (OTHER, "lumina", "beeps+drawings", 1),
    ],
)
def test_guided_ids_are_those_of_contexts_run_anew(vocab, scheme, mode, spans, name):
    weights = weights_of(vocab)
    config = GenerationConfig(
        mode=mode,
        max_tokens=30,
        max_spans={modality.name: spans for modality in vocab.marked.values()},
        sampling=dict.fromkeys(vocab.names, GREEDY),
        guidance=GuidanceConfig(text=2.5, image=1.3, scheme=scheme),
    )
    prompt = np.array(PROMPTS[name](vocab))
    if name == "a span that has begun":
        # The loop by hand begins outside of spans, so the marker is its first id and not of the prompt.
        prompt = prompt[:-1]
        config = dataclasses.replace(config, mode=first_marked(vocab).name)
    expected, guided = by_hand(vocab, prompt, config)
    others = [np.array([vocab.bos, *[vocab.text.start + 7] * 9]), prompt]
    outputs = generate(weights, model_of(vocab), vocab, [*others, prompt], config)
    assert outputs[1].ids.tolist() == outputs[2].ids.tolist() == expected
    assert guided >= 3 or name == "nothing"  # which need not begin a span
    if name == "a span that has begun":
        begun = np.append(prompt, first_marked(vocab).begin_marker)
        config = dataclasses.replace(config, max_tokens=config.max_tokens - 1)
        [output] = generate(weights, model_of(vocab), vocab, [begun], config)
        assert output.ids.tolist() == expected[1:]


def test_guidance_changes_pictures_and_leaves_words_alone():
    weights, prompt = weights_of(FIXED), np.array([FIXED.bos, FIXED.text.start + 5])
    text = GenerationConfig(
        mode="text", max_tokens=12, sampling={"text": GREEDY, "image": GREEDY}, guidance=GuidanceConfig(text=4.0)
    )
    [guided] = generate(weights, model_of(FIXED), FIXED, [prompt], text)
    [plain] = generate(weights, model_of(FIXED), FIXED, [prompt], dataclasses.replace(text, guidance=None))
    assert guided.ids.tolist() == plain.ids.tolist()
    draw = dataclasses.replace(text, mode="image", max_spans={"image": 2}, max_tokens=40)
    [guided] = generate(weights, model_of(FIXED), FIXED, [prompt], draw)
    [plain] = generate(weights, model_of(FIXED), FIXED, [prompt], dataclasses.replace(draw, guidance=None))
    assert guided.ids.tolist() != plain.ids.tolist()


@pytest.mark.parametrize(
    ("config", "has_spans", "lanes"),
    [
        (GenerationConfig(), True, 1),
        (GenerationConfig(mode="text", guidance=GuidanceConfig()), True, 1),
        (GenerationConfig(mode="image", max_spans={"image": 1}, guidance=GuidanceConfig()), False, 2),
        (GenerationConfig(mode="image", max_spans={"image": 1}, guidance=GuidanceConfig()), True, 3),
        (GenerationConfig(max_spans={"image": 2}, guidance=GuidanceConfig()), False, 3),
        (GenerationConfig(max_spans={"image": 2}, guidance=GuidanceConfig(scheme="lumina")), True, 2),
    ],
)
def test_a_third_context_is_run_only_where_it_differs(config, has_spans, lanes):
    assert lanes_needed(config, FIXED, has_spans) == lanes


def test_spans_of_all_modalities_count_for_the_third_context():
    once = GenerationConfig(mode="beeps", max_spans={"beeps": 1, "drawings": 1}, guidance=GuidanceConfig())
    assert lanes_needed(once, OTHER, False) == 2
    assert lanes_needed(dataclasses.replace(once, mode="beeps+drawings"), OTHER, False) == 3
    assert lanes_needed(dataclasses.replace(once, mode="words+moves"), OTHER, True) == 1


def test_guidance_needs_the_grammar():
    config = GenerationConfig(mode="unrestricted", guidance=GuidanceConfig())
    with pytest.raises(GenerationError, match="guidance"):
        generate(weights_of(FIXED), model_of(FIXED), FIXED, [np.array([FIXED.bos])], config)
