"""The small files that stand beside Hugging Face's weights: tokenizer, processor and generation settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chameleon_jax.configs import TransformerConfig, text_and_image
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.text import TextTokenizer
from chameleon_jax.vocab import Vocab

PLACEHOLDER = "<image>"
_PROCESSOR, _SEQUENCE = "processor_config.json", "image_seq_length"


def tokenizer_json(text: TextTokenizer, *, placeholder: str | None = None) -> str:
    """The tokenizer's file with the image placeholder named `placeholder`, or as the release names it, by its number, for None.

    Specials that no added token stands for get one, so that other programs can write them; ours never reads any.
    """
    content = json.loads(text.original)
    vocab = Vocab.from_config(text.vocab_config)
    numbered = vocab.special_names()[vocab.placeholder]
    old, new = (numbered, placeholder) if placeholder else (PLACEHOLDER, numbered)
    ids = content["model"]["vocab"]
    if old in ids and new not in ids:
        content["model"]["vocab"] = {new if name == old else name: i for name, i in ids.items()}
    added = content.get("added_tokens") or []
    if not added:
        names = {i: name for name, i in content["model"]["vocab"].items()}
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        added = [{"id": i, "content": names[i], **flags} for i in sorted(_roles(vocab).values())]
    content["post_processor"] = None  # Meta puts bos in by hand, once a prompt; `write` adds what Transformers expects
    content["added_tokens"] = [token | {"content": new} if token["content"] == old else token for token in added]
    return json.dumps(content, ensure_ascii=False)


def vocabulary_map(text: TextTokenizer) -> dict[str, int]:
    """Every name with its id, as config.json has them: Transformers finds image codes by it."""
    return json.loads(tokenizer_json(text, placeholder=PLACEHOLDER))["model"]["vocab"]


def default_vocabulary_map(vocab_size: int) -> dict[str, int]:
    """Names of the specials of the released layout, as far as they fit: Transformers cannot load a config without."""
    vocab = Vocab.from_config(text_and_image())
    names, placeholder = vocab.special_names()[:vocab_size], min(vocab.placeholder, vocab_size - 1)
    return {name: i for i, name in enumerate(names) if i != placeholder} | {PLACEHOLDER: placeholder}


def codes_per_image(folder: Path) -> int | None:
    """How many codes an image has, as the processor's file says; None without one."""
    try:
        count = json.loads((folder / _PROCESSOR).read_text(encoding="utf-8"))[_SEQUENCE]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return count if isinstance(count, int) and count > 0 else None


def write(folder: Path, bundle: TokenizerBundle, config: TransformerConfig) -> None:
    """Write tokenizer.json and the settings that `ChameleonProcessor` and `generate` of Transformers read."""
    vocab, pictures = bundle.vocab, bundle.vocab_config.of_codec("vqgan")
    is_grid = pictures.span == "grid"
    names = vocab.special_names()
    content: dict[str, Any] = json.loads(tokenizer_json(bundle.text, placeholder=PLACEHOLDER))
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    # Transformers' tokenizer begins a sequence by itself.
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [vocab.bos], "tokens": ["<s>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    resolution = bundle.pictures.config.resolution
    image_processor = {
        "image_processor_type": "ChameleonImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": resolution},
        "resample": 1,  # LANCZOS
        "do_center_crop": True,
        "crop_size": {"height": resolution, "width": resolution},
        "do_rescale": True,
        "rescale_factor": 0.0078,
        "do_normalize": True,
        "image_mean": [1.0, 1.0, 1.0],
        "image_std": [1.0, 1.0, 1.0],
        "do_convert_rgb": True,
    }
    files: dict[str, dict[str, Any]] = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "processor_class": "ChameleonProcessor",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "sep_token": names[vocab.end_of_turn],
            "image_token": PLACEHOLDER,
            "boi_token": "<racm3:break>",
            "eoi_token": "<eoss>",
            "extra_special_tokens": {
                "image_token": PLACEHOLDER,
                "boi_token": "<racm3:break>",
                "eoi_token": "<eoss>",
            },
            "model_max_length": config.max_seq_len,
            "clean_up_tokenization_spaces": False,
        },
        "preprocessor_config.json": {"processor_class": "ChameleonProcessor", **image_processor},
        _PROCESSOR: {"processor_class": "ChameleonProcessor", "image_token": PLACEHOLDER}
        | ({} if is_grid else {_SEQUENCE: pictures.length}),
        "generation_config.json": {
            "bos_token_id": vocab.bos,
            "eos_token_id": vocab.end_of_turn if is_grid else vocab.eos,  # Lumina-mGPT ends with its turn
            "pad_token_id": vocab.pad,
            "do_sample": True,
            "temperature": 0.7,
            "top_p": 0.9,
        },
    }
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _roles(vocab: Vocab) -> dict[str, int]:
    pictures = next(iter(vocab.marked.values()))
    return {
        "bos": vocab.bos,
        "pad": vocab.pad,
        "eos": vocab.eos,
        "unk": vocab.unk,
        "end of image": pictures.end_marker,
        "begin of image": pictures.begin_marker,
        "end of turn": vocab.end_of_turn,
        "placeholder": vocab.placeholder,
    }
