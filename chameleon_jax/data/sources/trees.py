"""Folders of picture files without a manifest: with words in a text file beside each, with a folder for each class, or alone.

Files are found at any depth and taken in the order of their paths. Hidden files and folders are passed over.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator

from chameleon_jax.configs import SourceConfig, VocabConfig
from chameleon_jax.data.sources.media import load_file
from chameleon_jax.data.sources.records import Record, Reject, brief
from chameleon_jax.data.sources.schemas import record_segments
from chameleon_jax.errors import DataError
from chameleon_jax.tokenizers.documents import Segment

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
TEXTS = (".txt", ".caption")
KINDS = ("pairs", "classes", "pictures")


def tree_records(config: SourceConfig, vocab: VocabConfig) -> Iterator[Record | Reject]:
    """One record a picture, and for `pairs` a reject for every text that stands beside none.

    Raises DataError at once where the path is no folder, or there is no picture in it.
    """
    root, pictures, texts = find(config)
    return _records(config, root, pictures, texts, vocab)


def count(config: SourceConfig) -> int:
    """How many things `tree_records` yields. Raises DataError as it does."""
    _, pictures, texts = find(config)
    return len(pictures) + (len(_without_picture(pictures, texts)) if config.kind == "pairs" else 0)


def find(config: SourceConfig) -> tuple[str, list[str], dict[str, list[str]]]:
    """The folder, the pictures below it, and the text files by their path without the ending; all paths below the folder.

    Raises DataError where the path is no folder, or there is no picture in it.
    """
    where = f"source '{config.name}': path '{config.path}'"
    root = os.path.expanduser(config.path)
    if not os.path.isdir(root):
        raise DataError(
            f"{where} is {'a file' if os.path.exists(root) else 'missing'}: kind '{config.kind}' is a folder"
        )
    if config.split:
        raise DataError(f"{where}: files have no splits; give the folder of one instead of split '{config.split}'")
    pictures, texts = list_files(root)
    if not pictures:
        raise DataError(f"{where} holds no picture ({', '.join(PICTURES)})")
    return root, pictures, texts


def list_files(root: str) -> tuple[list[str], dict[str, list[str]]]:
    """The picture files below a folder, sorted, and its text files by their path without the ending, as `all_files` has them."""
    return pictures_and_texts(all_files(root))


def pictures_and_texts(paths: Iterable[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The same of paths that were listed before."""
    pictures, texts = [], {}
    for path in paths:
        stem, ending = os.path.splitext(path)
        if ending.lower() in PICTURES:
            pictures.append(path)
        elif ending.lower() in TEXTS:
            texts.setdefault(stem, []).append(path)
    return sorted(pictures), texts


def all_files(root: str) -> list[str]:
    """The files below a folder by their paths in it, with `/`, folder after folder and sorted in each; hidden ones are passed over.

    Links to folders are followed, but for those that lead back to a folder on the way.
    """
    found = []
    way = {root: {os.path.realpath(root)}}  # real folders from the root to each folder that is yet to be read
    for folder, folders, names in os.walk(root, followlinks=True):
        above, below_it = way.pop(folder), []
        for name in sorted(name for name in folders if not name.startswith((".", "__MACOSX"))):
            path = os.path.join(folder, name)
            real = os.path.realpath(path)
            if real not in above:
                way[path] = above | {real}
                below_it.append(name)
        folders[:] = below_it
        below = "" if folder == root else os.path.relpath(folder, root).replace(os.sep, "/") + "/"
        found += [below + name for name in sorted(names) if not name.startswith(".")]
    return found


def class_name(path: str) -> str:
    """What the folder of a picture is called, as words; empty for a picture in no folder."""
    return " ".join(re.sub(r"[_\-]+", " ", path.rpartition("/")[0].rpartition("/")[2]).split())


def _records(
    config: SourceConfig, root: str, pictures: list[str], texts: dict[str, list[str]], vocab: VocabConfig
) -> Iterator[Record | Reject]:
    words = {
        "pairs": lambda picture: _text_beside(picture, root, texts),
        "classes": _class_of,
        "pictures": lambda picture: config.caption,
    }[config.kind]
    for picture in pictures:
        yield Record(picture, None, None, lambda picture=picture: _load(picture, words, root, vocab))
    if config.kind == "pairs":
        for text in _without_picture(pictures, texts):
            yield Reject(config.name, text, "no picture beside this text")


def _load(picture: str, words: Callable[[str], str], root: str, vocab: VocabConfig) -> tuple[Segment, ...]:
    text = words(picture)
    return record_segments({"image": picture} | ({"text": text} if text else {}), root, vocab)


def _text_beside(picture: str, root: str, texts: dict[str, list[str]]) -> str:
    stem = os.path.splitext(picture)[0]
    if stem not in texts:
        raise DataError(f"no text beside the picture: {_shown(stem + '.txt')} is missing")
    if len(texts[stem]) > 1:
        raise DataError(f"more than one text beside the picture: {' and '.join(map(_shown, texts[stem]))}")
    (beside,) = texts[stem]
    data, _ = load_file(beside, root, "text")
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{_shown(beside)} is not UTF-8: {error.reason} at byte {error.start}") from error
    if not text:
        raise DataError(f"{_shown(beside)} is empty")
    return text


def _class_of(picture: str) -> str:
    if name := class_name(picture):
        return name
    raise DataError("picture lies in no folder of a class")


def _shown(path: str) -> str:
    """The name of a file as a reason says it."""
    return brief(os.path.basename(path))


def _without_picture(pictures: list[str], texts: dict[str, list[str]]) -> list[str]:
    stems = {os.path.splitext(picture)[0] for picture in pictures}
    return [text for stem, beside in texts.items() if stem not in stems for text in beside]
