"""WebDataset tars: members of one name, up to the first dot, are one record.

A tar is a stream of bytes, read once and never unpacked. Only pictures, texts and JSON are looked at; pickles,
links and devices are passed over unread.
"""

from __future__ import annotations

import dataclasses
import json
import posixpath
import tarfile
import zlib
from collections.abc import Iterator

from chameleon_jax.configs import SourceConfig, VocabConfig
from chameleon_jax.data.sources.files import SourceFile
from chameleon_jax.data.sources.records import MAX_FILE_BYTES, Record, Reject, brief
from chameleon_jax.data.sources.schemas import record_segments
from chameleon_jax.errors import DataError
from chameleon_jax.tokenizers.documents import Segment

_IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
_TEXTS = ("txt", "caption")
_READ = (*_IMAGES, *_TEXTS, "json")


@dataclasses.dataclass
class _Group:
    key: str
    members: dict[str, bytes] = dataclasses.field(default_factory=dict)
    unread: list[str] = dataclasses.field(default_factory=list)
    fault: str = ""


def tar_records(config: SourceConfig, files: list[SourceFile], vocab: VocabConfig) -> Iterator[Record | Reject]:
    """Records of tars (plain or compressed) in the order of their members."""
    for file in files:
        seen: set[str] = set()
        try:
            for group in _groups(file.path):
                if group.key in seen and not group.fault:
                    group.fault = "key appears twice in the tar"
                seen.add(group.key)
                yield Record(f"{file.label}/{group.key}", None, None, lambda group=group: _load(group, vocab))
        except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError) as error:
            place = f"{file.label}/{len(seen)}"
            yield Reject(
                config.name, place, f"tar is truncated or damaged from here on: {' '.join(str(error).split())}"
            )
        else:
            if not seen:
                yield Reject(config.name, file.label, "tar has no records")


def _groups(path: str) -> Iterator[_Group]:
    group = _Group("")
    with tarfile.open(path, "r|*", tarinfo=_StrictHeader) as tar:
        for member in tar:
            tar.members = []  # tarfile keeps every header it has seen
            if member.isdir():
                continue
            folder, name = posixpath.split(member.name)
            stem, _, extension = name.partition(".")
            key, extension = posixpath.join(folder, stem), extension.lower()
            if key != group.key:
                if group.key:
                    yield group
                group = _Group(key)
            _add(group, tar, member, extension)
        if group.key:
            yield group


class _StrictHeader(tarfile.TarInfo):
    """Only zero blocks end a tar; tarfile also takes a damaged or missing header for the end, and would lose the rest unsaid."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {tar.offset}") from error


def _add(group: _Group, tar: tarfile.TarFile, member: tarfile.TarInfo, extension: str) -> None:
    if member.name.startswith("/") or ".." in member.name.split("/"):
        group.fault = f"member name is unsafe: {brief(member.name)}"
    elif not member.isreg() or extension not in _READ:
        if len(group.unread) < 4:
            group.unread.append(f"{'' if member.isreg() else 'link or device '}.{extension}")
    elif extension in group.members:
        group.fault = f"member .{extension} appears twice"
    elif member.size > MAX_FILE_BYTES:
        group.fault = f"member .{extension} of {member.size} bytes exceeds {MAX_FILE_BYTES}"
    else:
        data = tar.extractfile(member).read()
        if len(data) != member.size:
            raise tarfile.ReadError(f"member {brief(member.name)} has {len(data)} of {member.size} bytes")
        group.members[extension] = data


def _load(group: _Group, vocab: VocabConfig) -> tuple[Segment, ...]:
    if group.fault:
        raise DataError(group.fault)
    images = [extension for extension in group.members if extension in _IMAGES]
    texts = [extension for extension in group.members if extension in _TEXTS]
    unread = f" (not read: {', '.join(group.unread)})" if group.unread else ""
    if len(images) > 1 or len(texts) > 1:
        raise DataError(f"several members of one kind: .{', .'.join(images if len(images) > 1 else texts)}")
    if not images:
        raise DataError(f"no image member{unread}")
    if not texts and "json" not in group.members:
        raise DataError(f"no text member (.txt, .caption or .json){unread}")
    caption = group.members[texts[0]] if texts else _json_caption(group.members["json"])
    return record_segments({"image": group.members[images[0]], "text": caption}, "", vocab)


def _json_caption(data: bytes) -> object:
    try:
        fields = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"member .json is not valid JSON: {error}") from error
    for name in ("caption", "text"):
        if isinstance(fields, dict) and name in fields:
            return fields[name]
    raise DataError("member .json has neither 'caption' nor 'text', and there is no .txt member")
