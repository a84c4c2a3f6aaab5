"""The engine on small random models, in fp32."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.configs import (
    GenerationConfig,
    MeshConfig,
    SamplingConfig,
    TransformerConfig,
    text_and_image,
)
from chameleon_jax.errors import GenerationError
from chameleon_jax.generation import engine, grammar, lanes
from chameleon_jax.generation.engine import generate
from chameleon_jax.generation.grammar import OUTSIDE, split_spans
from chameleon_jax.generation.weights import decoding_form
from chameleon_jax.models import transformer
from chameleon_jax.models.params import map_specs
from chameleon_jax.models.quantize import quantize_parameter
from chameleon_jax.parallel.mesh import make_mesh
from chameleon_jax.vocab import Vocab

TEXT, IMAGE = 0, 1  # rows of the modality table

CODES = 4
VOCAB = Vocab.from_config(text_and_image(image_codes=16, reserved=4, text_tokens=256, codes_per_image=CODES))
CODE = VOCAB.modalities[IMAGE]
BOI, EOI, EOS, WORD = CODE.begin_marker, CODE.end_marker, VOCAB.eos, VOCAB.text.start
CONTEXT = 96
MODEL = TransformerConfig(
    vocab_size=VOCAB.size + 2,  # a padded head, as a mesh may ask for
    d_model=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=48,
    max_seq_len=CONTEXT,
    compute_dtype="float32",
    init_std=0.2,
)
PICTURE = [BOI, *range(CODE.start, CODE.start + CODES), EOI]
PROMPTS = [
    np.array([VOCAB.bos, WORD + 7, WORD + 3]),
    np.array([VOCAB.bos, *PICTURE, *range(WORD, WORD + 20)]),
    np.array([VOCAB.bos]),
    np.array([VOCAB.bos, WORD + 9, *PICTURE, WORD + 1, WORD + 2]),
]
GREEDY = SamplingConfig(temperature=0.0)
RANDOM = SamplingConfig(temperature=1.0, top_p=0.95)


def _random_weights(config, seed):
    """Normal matrices, norms of one, biases of zero; drawn by NumPy, which needs no compiling."""
    rng = np.random.default_rng(seed)
    fixed = {"ones": np.ones, "zeros": np.zeros}

    def draw(spec):
        return jnp.asarray(
            fixed[spec.init](spec.shape) if spec.init in fixed else rng.normal(scale=spec.std, size=spec.shape),
            spec.dtype,
        )

    return map_specs(draw, transformer.param_specs(config))


@pytest.fixture(scope="module")
def weights():
    return _random_weights(MODEL, seed=1)


@pytest.fixture(scope="module")
def eager_weights(weights):
    """The same model, but keen to begin images and to end: one dimension of every id's embedding is a constant for the head."""
    embed = weights["embed"].at[:, 0].set(2.0)
    head = weights["head"].at[0].set(0.0).at[0, jnp.array([BOI, EOS])].set(jnp.array([3.0, 2.0]))
    return weights | {"embed": embed, "head": head}


FILLER = np.array([VOCAB.bos, *[WORD] * 60])


def _run(weights, prompts, config, row_ids=(5, 6, 7, 8), model=MODEL):
    """Outputs of up to four prompts, in a batch of four rows with a long one, so that tests share compiled shapes."""
    filled = [*prompts, *[FILLER] * (4 - len(prompts))]
    return generate(weights, model, VOCAB, filled, config, row_ids=row_ids)[: len(prompts)]


def _config(mode="interleaved", settings=RANDOM, **kwargs):
    both = {"text": settings, "image": settings}
    return GenerationConfig(**({"mode": mode, "sampling": both, "max_tokens": 40} | kwargs))


def _ids(outputs):
    return [output.ids.tolist() for output in outputs]


@functools.partial(jax.jit, static_argnames="model")
def _uncached_logits(weights, tokens, model=MODEL):
    width = tokens.shape[0]
    ones, positions = jnp.ones((1, width), jnp.int32), jnp.arange(width)[None]
    modality = VOCAB.modality_of(tokens[None])
    hidden = transformer.forward(weights, tokens[None], positions, ones, model, modality=modality).hidden
    return transformer.logits(weights, hidden, model)[0]


def _greedy_without_cache(weights, prompt, mode, steps, max_images, model=MODEL):
    """Run the whole sequence anew for every token."""
    state = grammar.start(VOCAB, _config(mode, max_spans={"image": max_images}), np.array([steps]), np.array([OUTSIDE]))
    ids = prompt.tolist()
    allowed, advance = jax.jit(grammar.allowed, static_argnums=(1, 2)), jax.jit(grammar.advance, static_argnums=2)
    while state.finish[0] == grammar.FinishReason.RUNNING:
        padded = np.zeros(CONTEXT, np.int32)
        padded[: len(ids)] = ids
        logits = np.asarray(_uncached_logits(weights, padded, model))[len(ids) - 1]
        mask = np.asarray(allowed(state, VOCAB, MODEL.vocab_size))[0]
        ids.append(int(np.argmax(np.where(mask, logits, -np.inf))))
        state = advance(state, np.array([ids[-1]]), VOCAB)
    return ids[len(prompt) :]


@pytest.mark.parametrize("mode", ["text", "image", "interleaved"])
def test_greedy_decoding_equals_running_the_whole_sequence_anew(weights, eager_weights, mode):
    chosen = eager_weights if mode == "interleaved" else weights
    outputs = _run(chosen, PROMPTS, _config(mode, GREEDY, max_spans={"image": 3}))
    expected = [_greedy_without_cache(chosen, prompt, mode, 40, 3) for prompt in PROMPTS]
    assert _ids(outputs) == expected


def test_greedy_decoding_of_untied_parts_equals_running_the_whole_sequence_anew(eager_weights):
    """Words and images in one batch, each id by the parameters of its own modality."""
    model = dataclasses.replace(MODEL, untied=("mlp", "norms", "attention"))
    ends = {name: eager_weights[name] for name in ("embed", "head")}
    weights = _random_weights(model, seed=1) | ends
    outputs = _run(weights, PROMPTS, _config("image", GREEDY, max_spans={"image": 3}), model=model)
    expected = [_greedy_without_cache(weights, prompt, "image", 40, 3, model) for prompt in PROMPTS]
    assert _ids(outputs) == expected
    assert all({BOI, EOI} <= set(ids) for ids in expected)


def test_a_model_of_another_number_of_modalities_is_refused():
    model = dataclasses.replace(MODEL, untied=("mlp",), modalities=3)
    with pytest.raises(GenerationError, match="of 3 modalities, the vocabulary has 2"):
        generate({}, model, VOCAB, PROMPTS, _config())


@pytest.mark.parametrize("mode", ["text", "image", "interleaved"])
def test_a_row_does_not_depend_on_its_neighbours(eager_weights, mode):
    config = _config(mode)
    together = _run(eager_weights, PROMPTS, config)
    for i, prompt in enumerate(PROMPTS):
        alone = _run(eager_weights, [prompt], config, row_ids=[5 + i, 1, 2, 3])
        assert _ids(alone) == [together[i].ids.tolist()]
    order = [2, 0, 3, 1]
    shuffled = _run(eager_weights, [PROMPTS[i] for i in order], config, row_ids=[5 + i for i in order])
    assert _ids(shuffled) == [together[i].ids.tolist() for i in order]


def test_a_row_draws_the_same_in_a_batch_of_its_own(eager_weights):
    together = _run(eager_weights, PROMPTS, _config())
    for i in (0, 2):
        alone = generate(eager_weights, MODEL, VOCAB, [PROMPTS[i]], _config(), row_ids=[5 + i])
        assert _ids(alone) == [together[i].ids.tolist()]


def test_the_seed_decides_and_equal_prompts_draw_apart(weights):
    prompts = [PROMPTS[0]] * 4
    first, again = (_run(weights, prompts, _config("text", seed=3)) for _ in range(2))
    other = _run(weights, prompts, _config("text", seed=4))
    assert _ids(first) == _ids(again)
    assert len({tuple(ids) for ids in _ids(first) + _ids(other)}) == 8


def test_an_output_put_behind_its_prompt_is_continued_as_if_never_stopped(weights):
    whole = _run(weights, PROMPTS[:1], _config("text"))[0].ids
    part = _run(weights, PROMPTS[:1], _config("text", max_tokens=5))[0].ids
    rest = _run(weights, [np.concatenate([PROMPTS[0], part])], _config("text", max_tokens=35))[0].ids
    assert len(whole) > 5 and np.array_equal(np.concatenate([part, rest]), whole)


@pytest.mark.parametrize("mode", ["text", "image", "interleaved"])
def test_images_are_whole_and_the_end_stays_outside_of_them(eager_weights, mode):
    images, reasons = 0, set()
    for output in [
        o for s in range(10) for o in _run(eager_weights, PROMPTS, _config(mode, max_spans={"image": 3}, seed=s))
    ]:
        spans = split_spans(output.ids, VOCAB)
        assert all(span.complete for span in spans)
        drawn = [span for span in spans if span.modality == IMAGE]
        assert all(len(span.ids) == CODES + 2 for span in drawn) and len(drawn) <= 3
        assert EOS not in output.ids[:-1]
        assert (output.ids[-1] == EOS) == (output.finish_reason == "eos")
        assert mode != "text" or not drawn
        assert mode != "image" or (len(output.ids) == 3 * (CODES + 2) and output.finish_reason == "spans")
        images += len(drawn)
        reasons.add(output.finish_reason)
    assert mode == "text" or images > 10
    assert mode == "image" or "eos" in reasons


@pytest.mark.parametrize("mode", ["image", "interleaved"])
def test_a_prompt_that_ends_in_the_begin_marker_gets_its_codes_first(weights, mode):
    output = _run(weights, [np.array([VOCAB.bos, WORD, BOI])], _config(mode, max_spans={"image": 1}))[0]
    first = split_spans(output.ids, VOCAB)[0]
    assert first.modality == IMAGE and first.complete and len(first.ids) == CODES + 1
    assert mode != "image" or (len(output.ids) == CODES + 1 and output.finish_reason == "spans")


def test_in_image_mode_the_begin_marker_may_be_left_to_the_engine(weights):
    """Greedy: the same codes come whether the prompt or the grammar sets the marker."""
    prompts = [np.array([VOCAB.bos, WORD]), np.array([VOCAB.bos, WORD, BOI])]
    written, given = _run(weights, prompts, _config("image", GREEDY, max_spans={"image": 1}))
    assert written.ids[0] == BOI and np.array_equal(written.ids[1:], given.ids)


@pytest.mark.parametrize("room", [CODES + 1, CODES + 2, CODES + 3])
def test_an_image_that_does_not_fit_the_context_never_begins(eager_weights, room):
    prompts, begun = [np.array([VOCAB.bos, *[WORD + i] * (CONTEXT - room - 1)]) for i in range(4)], 0
    for output in [o for s in range(10) for o in _run(eager_weights, prompts, _config(max_tokens=1000, seed=s))]:
        assert all(span.complete for span in split_spans(output.ids, VOCAB))
        assert len(output.ids) <= room and (output.finish_reason == "eos" or len(output.ids) == room)
        begun += BOI in output.ids
    assert (begun == 0) if room < CODES + 2 else (begun > 0)


def test_modalities_have_their_own_settings(weights):
    """Greedy text, hot images: two seeds give other images and the same text."""
    settings = {"text": GREEDY, "image": SamplingConfig(temperature=5.0, top_p=1.0)}
    image = [np.array([VOCAB.bos, WORD, BOI])]
    first, other = (
        _run(weights, image, GenerationConfig(seed=s, max_tokens=9, sampling=settings))[0].ids for s in (0, 1)
    )
    assert not np.array_equal(first[:CODES], other[:CODES])
    texts = [
        _run(weights, PROMPTS[:1], GenerationConfig(mode="text", seed=s, max_tokens=9, sampling=settings))
        for s in (0, 1)
    ]
    assert _ids(texts[0]) == _ids(texts[1])


def test_the_loop_goes_on_over_blocks(weights, monkeypatch):
    whole = _run(weights, PROMPTS, _config())
    monkeypatch.setattr(engine, "BLOCK", 7)
    assert _ids(_run(weights, PROMPTS, _config())) == _ids(whole)


def test_bfloat16_and_chunked_attention_obey_the_grammar(weights):
    model = dataclasses.replace(MODEL, compute_dtype="bfloat16", attention="chunked", attention_chunk=16)
    for output in _run(weights, PROMPTS, _config("image", max_spans={"image": 2}), model=model):
        assert len(output.ids) == 2 * (CODES + 2)


def test_modes_lengths_and_settings_share_one_compiled_loop(weights):
    _run(weights, PROMPTS[:3], _config("text"))
    before = lanes.run_block._cache_size()
    for mode, max_tokens in (("text", 30), ("image", 33), ("interleaved", 39)):
        _run(weights, PROMPTS[:3], _config(mode, GREEDY, max_tokens=max_tokens, seed=max_tokens))
    assert lanes.run_block._cache_size() == before


@pytest.mark.skipif(jax.device_count() < 2, reason="needs several devices")
def test_a_mesh_gives_the_same_and_rows_need_not_fill_it(weights):
    expected = _ids(_run(weights, PROMPTS, _config("image", GREEDY)))
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=2, tensor=-1), jax.devices()[:2])):
        outputs = generate(weights, MODEL, VOCAB, PROMPTS[:3], _config("image", GREEDY))
    assert _ids(outputs) == expected[:3]


def test_no_prompts_give_no_outputs(weights):
    assert generate(weights, MODEL, VOCAB, [], _config()) == []


@pytest.mark.parametrize(
    "prompt, config, told",
    [
        ([], {}, "empty"),
        ([[0, 1]], {}, "not a list of ids"),
        ([0.0, 1.5], {}, "integers"),
        ([0, -1], {}, "ids -1..0"),
        ([0, VOCAB.size], {}, f"vocabulary ends at {VOCAB.size - 1}"),
        ([0, VOCAB.pad], {}, "padding id 1"),
        ([WORD] * CONTEXT, {}, f"{CONTEXT} ids"),
        ([0, *PICTURE[:3]], {}, "cut span of 'image' at id 1: 2 of 4 codes"),
        ([0, *PICTURE[:3], WORD], {}, "cut span of 'image'"),
        ([0, *PICTURE[1:]], {}, "cut span of 'image'"),
        (PICTURE[1:], {}, "cut span of 'image' at id 0"),
        ([0, EOI], {}, "cut span of 'image'"),
        ([0, BOI, WORD], {}, "cut span of 'image' at id 1: 0 of 4"),
        ([0, BOI], {"mode": "text"}, "mode 'text' cannot write"),
        ([0, BOI], {"max_tokens": CODES}, f"room for {CODES} "),
        ([0], {"mode": "image", "max_tokens": CODES + 1}, f"a span of 'image' needs {CODES + 2}"),
        ([WORD] * (CONTEXT - CODES - 1), {"mode": "image"}, f"a span of 'image' needs {CODES + 2}"),
    ],
)
def test_a_prompt_that_cannot_be_served_is_refused_with_a_reason(weights, prompt, config, told):
    served = np.array([VOCAB.bos, BOI]) if config.get("mode") == "image" else PROMPTS[0]
    with pytest.raises(GenerationError, match="prompt 1 ") as error:
        generate(weights, MODEL, VOCAB, [served, np.array(prompt)], _config(**config))
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_model_smaller_than_the_vocabulary_is_refused(weights):
    small = dataclasses.replace(MODEL, vocab_size=VOCAB.size - 1)
    with pytest.raises(GenerationError, match=f"{VOCAB.size - 1} ids"):
        generate(weights, small, VOCAB, PROMPTS, _config())


def test_damaged_weights_are_reported_by_the_prompt_they_struck(weights):
    head = weights["head"].at[0, 0].set(jnp.nan)
    with pytest.raises(GenerationError, match="prompt 0: the model gave logits that are not finite"):
        _run(weights | {"head": head}, PROMPTS, _config())


@pytest.mark.parametrize("form", ["compute", "bfloat16", "int8"])
def test_weights_in_decoding_form_are_those_of_the_stack_and_a_gift_is_taken(weights, form):
    weights = jax.tree.map(jnp.asarray, weights)
    kept = decoding_form(weights, MODEL, form)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(weights))
    expected = jax.tree.map(quantize_parameter, weights, transformer.param_specs(MODEL)) if form == "int8" else weights
    expected = transformer.by_layer(expected)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours.astype(float), theirs.astype(float), rtol=5e-3),
        kept,
        expected,
    )
    given = jax.tree.map(jnp.copy, weights)
    taken = decoding_form(given, MODEL, form, donate=True)
    jax.tree.map(np.testing.assert_array_equal, taken, kept)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given["layers"]))
