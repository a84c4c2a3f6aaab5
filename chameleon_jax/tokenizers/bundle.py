"""Everything between raw data and ids in one directory: the modality table, the text tokenizer and the other modalities' codecs.

These parts only make sense together. They are saved, checked and fingerprinted as one, and a token store remembers the fingerprint,
so that ids are never read by parts that did not write them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from chameleon_jax.configs import ImageConfig, ModalityConfig, VocabConfig
from chameleon_jax.errors import ConfigError, DataError, TokenizerError
from chameleon_jax.files import atomic_write
from chameleon_jax.tokenizers import vqgan
from chameleon_jax.tokenizers.codec import Codec, plain_codes
from chameleon_jax.tokenizers.perceived import PatchCodec
from chameleon_jax.tokenizers.pictures import PictureCodec
from chameleon_jax.tokenizers.sound import SoundCodec
from chameleon_jax.tokenizers.text import TextTokenizer
from chameleon_jax.vocab import Vocab
from chameleon_jax.workdir import TOKENIZER, VOCAB

TEXT = "tokenizer.json"
# By `ModalityConfig.codec`; text is read apart.
CODECS: dict[str, type[Codec]] = {codec.kind: codec for codec in (PictureCodec, SoundCodec, PatchCodec)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerBundle:
    """The parts that turn documents into ids and back. `codecs` are by name of the modality; text is not among them."""

    vocab_config: VocabConfig
    text: TextTokenizer
    codecs: Mapping[str, Codec]

    @classmethod
    def of_pictures(cls, *, text: TextTokenizer, images: ImageConfig, vqgan: vqgan.Codec | None) -> TokenizerBundle:
        """The bundle of a table whose only other codec is one of pictures."""
        table = text.vocab_config
        codecs = {table.of_codec(PictureCodec.kind).name: PictureCodec(config=images, vqgan=vqgan)}
        return cls(vocab_config=table, text=text, codecs=codecs)

    @property
    def vocab(self) -> Vocab:
        return Vocab.from_config(self.vocab_config)

    @property
    def pictures(self) -> PictureCodec | None:
        """The first codec of pictures, or None."""
        return self.image_output[1]

    def of_kind(self, kind: str) -> tuple[str, Any] | tuple[str, None]:
        """Name and codec of the first modality of this kind of codec, or ("", None)."""
        row = self.vocab_config.of_codec(kind)
        return (row.name, self.codecs.get(row.name)) if row else ("", None)

    @property
    def image_input(self) -> tuple[str, PatchCodec | PictureCodec] | tuple[str, None]:
        """Name and codec of the modality that a picture of a prompt belongs to: patches if the table has them, else codes."""
        name, codec = self.of_kind(PatchCodec.kind)
        return (name, codec) if codec else self.image_output

    @property
    def image_output(self) -> tuple[str, PictureCodec] | tuple[str, None]:
        """Name and codec of the modality that pictures are generated in, the first with a codec of pictures."""
        return self.of_kind(PictureCodec.kind)

    def with_added(self, names: tuple[str, ...]) -> TokenizerBundle:
        """The bundle whose added control ids are these and no others, in this order; all other ids keep their meaning.

        So `with_added((*added, "<brush>"))` extends a bundle, and `with_added(added[:n])` is the one with n of them that it
        extends, of which the fingerprint can be told. Raises TokenizerError for a name that another id has.
        """
        taken = set(json.loads(self.text.to_json())["model"]["vocab"])
        if clash := next((name for name in names if name in taken), None):
            raise TokenizerError(f"'{clash}' is the name of an id already: give another")
        try:
            text = self.text.with_added(names)
        except ConfigError as error:
            raise TokenizerError(str(error)) from error
        return dataclasses.replace(self, vocab_config=text.vocab_config, text=text)

    @property
    def added_ids(self) -> dict[str, int]:
        """Id of each added name."""
        added = self.vocab_config.added
        first = self.vocab.size - len(added)
        return {name: first + i for i, name in enumerate(added)}

    @classmethod
    def load(cls, directory: str | os.PathLike, *, with_pictures: bool = True) -> TokenizerBundle:
        """Read and check a bundle. Raises TokenizerError for a part that is missing, damaged, or contradicts another.

        `with_pictures=False` leaves the networks of codecs of pictures unread, as if they were not there.
        """
        if not os.path.isfile(os.path.join(directory, VOCAB)):
            _explain_missing(directory)
        missing = [name for name in (VOCAB, TEXT) if not os.path.isfile(os.path.join(directory, name))]
        vocab_config = None if VOCAB in missing else _read_vocab(os.path.join(directory, VOCAB))
        codecs = {}
        for row, folder in codec_folders(vocab_config, directory) if vocab_config else ():
            kind = CODECS[row.codec]
            bare = kind is PictureCodec and not with_pictures
            codecs[row.name] = PictureCodec.load_rules(folder) if bare else kind.load(folder)
            if codecs[row.name] is None:
                missing.append(os.path.relpath(os.path.join(folder, kind.file), directory))
        if missing:
            raise TokenizerError(
                f"tokenizer bundle {directory} lacks {', '.join(missing)}: make it with  python -m experiments.train_tokenizer"
            )
        bundle = cls(
            vocab_config=vocab_config,
            text=TextTokenizer.load(os.path.join(directory, TEXT), vocab_config),
            codecs=codecs,
        )
        bundle.check()
        return bundle

    def save(self, directory: str | os.PathLike) -> None:
        """Check the parts and write them into a directory, which is made if need be; each file is whole or absent.

        Raises TokenizerError where the directory has a codec of another bundle and this one has none.
        """
        self.check()
        # The table last: without vocab.json nobody takes what is there for a bundle.
        for row, folder in codec_folders(self.vocab_config, directory):
            os.makedirs(folder, exist_ok=True)
            self.codecs[row.name].save(folder)
        os.makedirs(directory, exist_ok=True)
        self.text.save(os.path.join(directory, TEXT))
        atomic_write(os.path.join(directory, VOCAB), self.vocab_config.to_json())

    def check(self) -> None:
        """Raise TokenizerError, naming both numbers, when two parts contradict each other."""
        vocab = self.vocab_config
        mine, theirs = self.vocab.size, Vocab.from_config(self.text.vocab_config).size
        if mine != theirs:
            raise TokenizerError(
                f"tokenizer bundle: {mine} ids of the vocabulary but {theirs} ids of the text tokenizer: the parts do not belong "
                "together"
            )
        if different := vocab.diff(self.text.vocab_config):
            raise TokenizerError(f"tokenizer bundle: {VOCAB} and {TEXT} differ in {different}")
        wanted = {row.name for row in vocab.modalities[1:] if row.codec}
        if wanted != set(self.codecs):
            raise TokenizerError(
                f"tokenizer bundle: the table wants codecs of {', '.join(sorted(wanted)) or 'nothing'}, there are those of "
                f"{', '.join(sorted(self.codecs)) or 'nothing'}"
            )
        for name, codec in self.codecs.items():
            row = vocab.modalities[vocab.row(name)]
            if codec.kind != row.codec:
                raise TokenizerError(
                    f"tokenizer bundle: '{name}' has a codec of kind '{codec.kind}', the table says '{row.codec}'"
                )
            codec.check(row)
            for what, rows, codecs in (("codes", row.ids, codec.codes), ("codes in a span", row.length, codec.length)):
                if codecs is not None and rows != codecs:
                    raise TokenizerError(
                        f"tokenizer bundle: '{name}' has {rows} {what} in the table but {codecs} in its codec: the parts do not "
                        "belong together"
                    )

    def fingerprint(self) -> str:
        """First 16 hexadecimal digits of the sha256 over all that decides how documents become ids."""
        digest = hashlib.sha256()
        layout = json.dumps(self.vocab_config.layout(), sort_keys=True)
        for part in (layout, self.text.to_json()):
            digest.update(hashlib.sha256(part.encode()).digest())
        for name in sorted(self.codecs):
            digest.update(f"codec of {name}".encode())
            for part in self.codecs[name].identity():
                digest.update(part)
        return digest.hexdigest()[:16]

    def codes(self, name: str, data: Any) -> Int[np.ndarray, "..."]:
        """Codes of one piece of data of a modality. Raises DataError for data that cannot be used, TokenizerError without a codec.

        A `tokenizers.code_queue.CodeQueue` encodes many at a time.
        """
        row = self.vocab_config.modalities[self.vocab.row(name)]
        if row.codec == "bpe":
            if not isinstance(data, str):
                raise DataError(f"'{name}' is text, a str; {type(data).__name__} was given")
            return self.text.encode(data) - self.vocab.text.start
        if not row.codec:
            return plain_codes(name, data, row.ids)
        codec = self.codecs[name]
        return codec.encode(codec.prepare(data)[None])[0]


def codec_folders(vocab: VocabConfig, directory: str | os.PathLike) -> Iterator[tuple[ModalityConfig, str]]:
    """The rows with codecs beside text, and where each codec lies: a second one of a kind in a folder of the row's name."""
    kinds: set[str] = set()
    for row in vocab.modalities[1:]:
        if row.codec:
            yield row, os.path.join(directory, row.name) if row.codec in kinds else os.fspath(directory)
            kinds.add(row.codec)


def _explain_missing(directory: str | os.PathLike) -> None:
    """Raise TokenizerError where it is plain what is meant: no folder at all, or one that has a bundle in it."""
    if not os.path.isdir(directory):
        what = "is a file" if os.path.exists(directory) else "does not exist"
        raise TokenizerError(
            f"the tokenizer bundle {directory} {what}: give the workdir of  python -m experiments.train_tokenizer"
        )
    if os.path.isfile(os.path.join(directory, TOKENIZER, VOCAB)):
        raise TokenizerError(f"{directory} is no tokenizer bundle: give {os.path.join(directory, TOKENIZER)}")


def _read_vocab(path: str) -> VocabConfig:
    try:
        with open(path, encoding="utf-8") as file:
            return VocabConfig.from_dict(json.load(file))
    except (OSError, ValueError, AttributeError, TypeError, ConfigError) as error:
        raise TokenizerError(
            f"{path} is damaged or not a VocabConfig ({error}): copy the tokenizer again, or train it anew"
        ) from error
