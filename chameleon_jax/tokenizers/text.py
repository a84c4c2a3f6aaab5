"""Text to ids and back: byte-level BPE in Chameleon's id layout, by the `tokenizers` library.

Special ids have names in the vocabulary but no way to be reached from text. A tokenizer here has no added tokens,
no merge leads to a special name, and the text "IMGIMG" is split before merging. Whatever a user types, `encode` gives text ids
only; special ids are put in by `documents.assemble`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import decoders, models, pre_tokenizers, trainers

from chameleon_jax.configs import VocabConfig, text_and_image
from chameleon_jax.errors import TokenizerError
from chameleon_jax.files import atomic_write
from chameleon_jax.tokenizers.documents import valid_text
from chameleon_jax.vocab import Vocab, code_name

_RESERVED = re.compile(r"<reserved\d{5}>")
_BYTES = 256


class TextTokenizer:
    """Byte-level BPE over the text part of one id space."""

    def __init__(self, backend: tokenizers.Tokenizer, vocab_config: VocabConfig, original: str | None = None):
        self._backend = backend
        self._original = original
        self.vocab_config = vocab_config
        vocab = Vocab.from_config(vocab_config)
        self._text, self._size = vocab.text, vocab.size

    def with_added(self, names: tuple[str, ...]) -> TextTokenizer:
        """The same pieces in an id space whose added control ids are these; texts have the same ids."""
        return TextTokenizer(self._backend, dataclasses.replace(self.vocab_config, added=names), self._original)

    def encode(self, text: str) -> Int[np.ndarray, "n"]:
        """Ids of a text: text ids only. Lone surrogates count as U+FFFD; all else comes back unchanged by `decode`."""
        return np.asarray(self._backend.encode_batch_fast([valid_text(text)])[0].ids, np.int32)

    def decode(self, ids: Int[np.ndarray, "n"]) -> str:
        """Text of ids; all other ids say nothing, bytes that are not UTF-8 become U+FFFD.

        Raises TokenizerError for an id outside the vocabulary.
        """
        ids = np.asarray(ids, np.int64).reshape(-1)
        if ids.size and (ids.min() < 0 or ids.max() >= self._size):
            raise TokenizerError(f"ids {int(ids.min())}..{int(ids.max())} leave the vocabulary of {self._size} ids")
        pieces = ids[self._text.holds(ids)]
        return self._backend.decode(pieces.tolist(), skip_special_tokens=False)

    def to_json(self) -> str:
        """The whole tokenizer in the format of the `tokenizers` library; equal tokenizers have equal text."""
        return self._backend.to_str(pretty=False)

    @property
    def original(self) -> str:
        """The file that this tokenizer was read from, added tokens and all; `to_json` for one that was not read."""
        return self.to_json() if self._original is None else self._original

    def save(self, path: str | os.PathLike) -> None:
        """Write the tokenizer as one JSON file that `tokenizers.Tokenizer.from_file` also reads; one that was read, as it was."""
        atomic_write(path, self.original)

    @classmethod
    def load(cls, path: str | os.PathLike, table: VocabConfig | None = None) -> TextTokenizer:
        """Read a tokenizer file written by `save` or laid out as Chameleon's `text_tokenizer.json`.

        Sizes of the id space are derived from the names in `model.vocab`; all else of the modality table is not in the file and
        comes from `table`, by default that of Chameleon. Added tokens are dropped, and with them every way from text to a
        special id.

        Raises TokenizerError for a file that is missing, damaged or laid out in another way.
        """
        try:
            with open(path, encoding="utf-8") as file:
                original = file.read()
            content = json.loads(original)
            vocab, merges = content["model"]["vocab"], content["model"]["merges"]
        except OSError as error:
            raise TokenizerError(f"tokenizer file {path} cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise TokenizerError(f"tokenizer file {path} is not valid JSON: {error}") from error
        except (KeyError, TypeError) as error:
            raise TokenizerError(
                f"tokenizer file {path} has no model.vocab and model.merges: it is not a BPE file"
            ) from error
        config = _derive_config(vocab, table or text_and_image(), str(path))
        layout = Vocab.from_config(config)
        # Hugging Face gives one reserved id a name of its own; the same ids are the same tokenizer.
        numbered = layout.special_names()[layout.placeholder]
        content["model"]["vocab"] = {numbered if name == "<image>" else name: i for name, i in vocab.items()}
        content["model"]["merges"] = _text_merges(merges, vocab, layout.text.start)
        # A whole word that is found in the vocabulary would skip the merges, special names included.
        content["model"]["ignore_merges"] = False
        content |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        try:
            return cls(tokenizers.Tokenizer.from_str(json.dumps(content)), config, original)
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(f"tokenizer file {path} is refused by the tokenizers library: {error}") from error


def train_bpe(texts: Iterable[str], vocab: VocabConfig) -> TextTokenizer:
    """Train a byte-level BPE on texts and place its pieces after the special names of the layout.

    At most as many pieces as the row of text has ids (the 256 bytes among them); where the texts give fewer, the row of the
    result has what came. The same texts give the same tokenizer.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = _pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab.text.ids, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator((valid_text(text) for text in texts), trainer)

    content = json.loads(backend.to_str())
    pieces = sorted(content["model"]["vocab"], key=content["model"]["vocab"].__getitem__)
    config = vocab.with_row(vocab.text.name, ids=len(pieces))
    names = Vocab.from_config(config).special_names() + pieces
    content["model"]["vocab"] = {name: i for i, name in enumerate(names)}
    return TextTokenizer(tokenizers.Tokenizer.from_str(json.dumps(content)), config)


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Chameleon's splits: white space runs, single digits, single punctuation marks, then GPT-2's words in bytes.

    The first split is ours: without it a text full of "IMGIMGAZ" could train a piece of that name.
    """
    patterns = [r"IMG", r"[\t\n]|    |  ", r"\p{N}", r"[\p{P}!-/:-@\[-`{-~]"]
    splits = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])


def _derive_config(vocab: dict[str, Any], table: VocabConfig, path: str) -> VocabConfig:
    """Sizes of the id space from the names of a vocabulary, with Chameleon's places asserted."""
    if not isinstance(vocab, dict) or not all(type(i) is int and i >= 0 for i in vocab.values()):
        raise TokenizerError(f"{path}: model.vocab is not a map from names to ids")
    by_id = {i: name for name, i in vocab.items()}
    if len(by_id) != len(vocab):
        raise TokenizerError(f"{path}: {len(vocab)} names share {len(by_id)} ids")

    first = next((row for row in table.modalities if row.marked), None)
    codes = 0
    while first and code_name(codes) in vocab:
        codes += 1
    roles = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3} | {code_name(code): 4 + code for code in range(codes)}
    if first:
        roles |= {"<eoss>": 4 + codes, "<racm3:break>": 4 + codes + 1}
    for name, expected in roles.items():
        if vocab.get(name) != expected:
            raise TokenizerError(
                f"{path}: '{name}' should have id {expected}, found {vocab.get(name)}: not Chameleon's layout"
            )

    reserved, reserved_start = 0, len(roles)
    # Hugging Face renames one reserved id to <image>.
    while _RESERVED.fullmatch(name := by_id.get(reserved_start + reserved, "")) or name == "<image>":
        reserved += 1
    text_start = reserved_start + reserved
    misplaced = {f"<reserved{i - 4:05d}>": i for i in range(reserved_start, text_start)}
    for name, expected in misplaced.items():
        if by_id[expected] not in (name, "<image>"):
            raise TokenizerError(
                f"{path}: '{name}' should have id {expected}, found {vocab.get(name)}: not Chameleon's layout"
            )
    text_tokens = max(by_id) + 1 - text_start
    missing = [piece for piece in pre_tokenizers.ByteLevel.alphabet() if vocab.get(piece, -1) < text_start]
    if (first and codes == 0) or reserved < 2 or text_tokens < _BYTES or missing:
        raise TokenizerError(
            f"{path}: {codes} image codes, {reserved} reserved ids and {text_tokens} text ids that lack {len(missing)} of "
            f"{_BYTES} bytes: not Chameleon's layout"
        )
    config = dataclasses.replace(table, reserved=reserved).with_row(table.text.name, ids=text_tokens)
    if first:
        config = config.with_row(first.name, ids=codes)
    placeholder = Vocab.from_config(config).placeholder
    if vocab.get("<image>", placeholder) != placeholder:
        raise TokenizerError(
            f"{path}: '<image>' should have id {placeholder}, found {vocab['<image>']}: not Chameleon's layout"
        )
    return config


def _text_merges(merges: list[Any], vocab: dict[str, int], text_start: int) -> list[Any]:
    """The merges whose result is a text piece; they come as "a b" or ["a", "b"]."""

    def result(merge: Any) -> str:
        return "".join(merge) if isinstance(merge, list) else merge.replace(" ", "", 1)

    return [merge for merge in merges if vocab.get(result(merge), text_start) >= text_start]
