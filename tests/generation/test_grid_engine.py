"""Images of several sizes from a small random model, in fp32."""

import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.configs import GenerationConfig, SamplingConfig, TransformerConfig, text_and_image
from chameleon_jax.errors import GenerationError
from chameleon_jax.generation import engine, lanes
from chameleon_jax.generation.grammar import split_spans
from chameleon_jax.models import transformer
from chameleon_jax.models.params import map_specs
from chameleon_jax.vocab import Vocab

TEXT, IMAGE = 0, 1  # rows of the modality table

SIZES = {"image_span": "grid", "codes_per_image": 16, "max_grids": 4, "grid_unit": 2}
VOCAB = Vocab.from_config(text_and_image(image_codes=16, reserved=9, text_tokens=256, **SIZES))
FIXED = Vocab.from_config(text_and_image(image_codes=16, reserved=9, text_tokens=256, codes_per_image=4))
PICTURE = VOCAB.modalities[IMAGE]
BOI, WORD, TURN = PICTURE.begin_marker, VOCAB.text.start, VOCAB.end_of_turn
MODEL = TransformerConfig(
    vocab_size=VOCAB.size,
    d_model=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=48,
    max_seq_len=128,
    compute_dtype="float32",
    init_std=0.2,
)
RANDOM = SamplingConfig(temperature=1.0, top_p=1.0)
GRID = PICTURE.grammar


def side_id(side):
    return GRID.size_base + side // 2


@pytest.fixture(scope="module")
def weights():
    """A random model that is keen to begin images and to end its turn."""
    rng = np.random.default_rng(1)
    fixed = {"ones": np.ones, "zeros": np.zeros}

    def draw(spec):
        values = fixed[spec.init](spec.shape) if spec.init in fixed else rng.normal(scale=spec.std, size=spec.shape)
        return jnp.asarray(values, spec.dtype)

    drawn = map_specs(draw, transformer.param_specs(MODEL))
    embed = drawn["embed"].at[:, 0].set(2.0)
    head = drawn["head"].at[0].set(0.0).at[0, jnp.array([BOI, TURN])].set(jnp.array([3.0, 2.0]))
    return drawn | {"embed": embed, "head": head}


def run(weights, prompts, vocab=VOCAB, **config):
    settings = {"sampling": {"text": RANDOM, "image": RANDOM}, "max_tokens": 64, "max_spans": {"image": 2}} | config
    prompts = [np.array(prompt) for prompt in [*prompts, *[[0]] * (4 - len(prompts))]]
    return engine.generate(weights, MODEL, vocab, prompts, GenerationConfig(**settings))


def images(ids):
    return [span for span in split_spans(ids, VOCAB) if span.modality == IMAGE]


def test_images_of_the_models_own_choice_are_whole_and_differ(weights):
    sizes = set()
    for seed in range(6):
        for output in run(weights, [[0, WORD], [0]], mode="image", seed=seed):
            assert all(span.complete for span in split_spans(output.ids, VOCAB)) and images(output.ids)
            sizes |= {span.grid for span in images(output.ids)}
    assert len(sizes) > 3


def test_a_prompt_may_say_the_size_in_part_or_whole(weights):
    prompts = [[0, BOI], [0, WORD, BOI, side_id(4)], [0, BOI, side_id(2), side_id(6)]]
    for seed in range(3):
        outputs = run(weights, prompts, mode="image", max_spans={"image": 1}, seed=seed)
        grids = [images(np.concatenate([prompts[i], outputs[i].ids]))[0].grid for i in range(3)]
        assert grids[1][0] == 4 and grids[2] == (2, 6)
        for i in range(3):
            assert images(outputs[i].ids)[0].grid == grids[i]  # the output alone tells it too
            assert outputs[i].finish_reason == "spans"


def test_the_size_asked_for_is_kept_in_every_mode(weights):
    found = []
    for mode in ("image", "interleaved"):
        for output in run(weights, [[0], [0, WORD], [0, BOI]], mode=mode, grids={"image": (4, 2)}):
            found += [span.grid for span in images(output.ids)]
    assert len(found) > 8 and set(found) == {(4, 2)}


def test_the_end_of_a_turn_ends_an_output_that_may_end_so(weights):
    for stops in (True, False):
        outputs = [o for seed in range(4) for o in run(weights, [[0]], seed=seed, stop_at_turn_end=stops)]
        ended = [output for output in outputs if TURN in output.ids]
        assert bool(ended) == stops
        assert all(output.ids[-1] == TURN and output.finish_reason == "eos" for output in ended)
        assert all(TURN not in output.ids[:-1] for output in outputs)


def test_sizes_and_ends_share_one_compiled_loop(weights):
    run(weights, [[0]])
    before = lanes.run_block._cache_size()
    for config in (
        {"grids": {"image": (2, 2)}},
        {"grids": {"image": (4, 4)}, "mode": "image"},
        {"stop_at_turn_end": True},
    ):
        run(weights, [[0, BOI, side_id(2)]] if "grids" not in config else [[0]], **config)
    assert lanes.run_block._cache_size() == before


CUT = [0, *PICTURE.span(np.zeros((2, 4), int))][:-3]


@pytest.mark.parametrize(
    "prompt, config, told",
    [
        (CUT, {}, "prompt 0 has a cut span of 'image' at id 1: 7 codes that do not fill 2 rows of 4"),
        ([0, BOI, WORD], {}, "cut span of 'image' at id 1: 0 codes"),
        ([0, BOI, side_id(2), WORD], {}, "cut span of 'image'"),
        ([0, side_id(2)], {}, "cut span of 'image'"),
        ([0, BOI], {"mode": "text"}, "mode 'text' cannot write"),
        ([0, BOI, side_id(8), side_id(4)], {}, "8x4 = 32 codes, 16 are the most"),
        ([0, BOI, side_id(4)], {"grids": {"image": (2, 2)}}, "(4, 0) codes (height, width), the request asks for (2, 2)"),
        ([0, BOI, side_id(4), side_id(4)], {"max_tokens": 20},
         "room for 20 (max_tokens 20, context 128); a span of 'image' needs 21"),
        ([0], {"max_tokens": 9, "mode": "image"}, "a span of 'image' needs 10"),
        ([0], {"max_tokens": 23, "mode": "image", "grids": {"image": (4, 4)}}, "a span of 'image' needs 24"),
        ([0], {"grids": {"image": (3, 4)}},
         "'image' is asked for with 3x4 codes (height x width): sides are multiples of 2 up to 8"),
        ([0], {"grids": {"image": (4, 6)}}, "4x6 = 24 codes, 16 are the most"),
        ([0], {"grids": {"image": (4, 4)}, "vocab": FIXED}, "'image' of this vocabulary has no spans of many sizes"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_with_a_reason(weights, prompt, config, told):
    with pytest.raises(GenerationError) as error:
        run(weights, [prompt], **config)
    assert told in str(error.value) and "\n" not in str(error.value)
