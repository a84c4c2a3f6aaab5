"""Prompts against `ChameleonProcessor` of Transformers, which writes a placeholder id where we write codes."""

import json

import jax
import numpy as np
import pytest
import tokenizers
from PIL import Image
from tokenizers import processors

from chameleon_jax.configs import ImageConfig, VQConfig, text_and_image
from chameleon_jax.generation.prompt import encode_turns, place
from chameleon_jax.tokenizers import vqgan
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.documents import Segment
from chameleon_jax.tokenizers.images import prepare
from chameleon_jax.tokenizers.text import train_bpe

transformers = pytest.importorskip("transformers")
processing = pytest.importorskip("transformers.models.chameleon.processing_chameleon")
pil = pytest.importorskip("transformers.models.chameleon.image_processing_pil_chameleon")

VQ = VQConfig(
    resolution=8,
    patch_size=2,
    channels=8,
    channel_multipliers=(1,),
    res_blocks=1,
    latent_channels=8,
    embed_dim=8,
    codes=16,
    norm_groups=4,
)


@pytest.fixture(scope="module")
def bundle():
    text = train_bpe(
        ["what is this? a red heart, and another 12 hearts"] * 3,
        text_and_image(image_codes=16, reserved=6, text_tokens=300, codes_per_image=VQ.codes_per_image),
    )
    return TokenizerBundle.of_pictures(
        images=ImageConfig(resolution=8, preprocessing="hf"),
        text=text,
        vqgan=vqgan.Codec(params=vqgan.init(jax.random.key(0), VQ), config=VQ),
    )


@pytest.fixture(scope="module")
def processor(bundle):
    """Theirs, around our pieces: the published form of the tokenizer file has `<image>` for the placeholder and adds `[bos]`."""
    vocab, content = bundle.vocab, json.loads(bundle.text.to_json())
    names = vocab.special_names()
    turn, placeholder = names[vocab.end_of_turn], names[vocab.placeholder]
    pieces = content["model"]["vocab"]
    pieces["<image>"] = pieces.pop(placeholder)
    backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    backend.add_special_tokens(["<s>", "<racm3:break>", "<eoss>", "<image>", turn])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab.bos)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", sep_token=turn)
    side = {"height": 8, "width": 8}
    images = pil.ChameleonImageProcessorPil(size={"shortest_edge": 8}, crop_size=side)
    made = processing.ChameleonProcessor(images, fast, image_seq_length=VQ.codes_per_image)
    made.end_of_turn = turn
    return made


PICTURES = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 11 + i, 3), np.uint8)) for i in range(2)]


def theirs(processor, text, pictures, **settings):
    made = processor(images=pictures or None, text=text, return_tensors="np", **settings)
    return made["input_ids"][0], made.get("pixel_values")


def without_codes(ids, bundle):
    return np.where(bundle.vocab.modalities[1].holds(ids), bundle.vocab.placeholder, ids)


@pytest.mark.parametrize(
    "text, pictures", [("a red heart", 0), ("<image>what is this?", 1), ("<image> and <image> 12", 2)]
)
@pytest.mark.parametrize("form", ["completion", "chat"])
def test_prompts_and_pixels_equal_those_of_the_port(bundle, processor, text, pictures, form):
    pixels = [prepare(picture, bundle.pictures.config) for picture in PICTURES[:pictures]]
    ids, values = theirs(processor, text, PICTURES[:pictures], return_for_text_completion=form == "completion")
    parts = place(text, [Segment("image", item) for item in pixels])
    ours = encode_turns([parts], bundle, format=form)
    np.testing.assert_array_equal(without_codes(ours, bundle), ids)
    if pictures:
        np.testing.assert_array_equal(np.stack(pixels), values.transpose(0, 2, 3, 1))


def test_a_chat_of_turns_is_the_port_s_text_with_separators(bundle, processor):
    turn = processor.end_of_turn
    text = f"<image>what is this?{turn}a red heart{turn}and this? <image>"
    first, second = (Segment("image", prepare(picture, bundle.pictures.config)) for picture in PICTURES)
    turns = [[first, "what is this?"], ["a red heart"], ["and this? ", second]]
    ids, _ = theirs(processor, text, PICTURES)
    np.testing.assert_array_equal(without_codes(encode_turns(turns, bundle, format="chat"), bundle), ids)
