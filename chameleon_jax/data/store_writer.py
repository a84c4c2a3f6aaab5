"""Writes a token store, one whole shard at a time.

The bytes of shard k are a pure function of its documents, so a shard that a crash tore is written again and comes
out the same; nothing is visible before its commit file is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np

from chameleon_jax.configs import VocabConfig
from chameleon_jax.data import store_format as layout
from chameleon_jax.errors import StoreError
from chameleon_jax.files import sync, sync_tree
from chameleon_jax.tokenizers.documents import TokenDocument
from chameleon_jax.vocab import Vocab


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreIdentity:
    """What the tokens of a store mean; stores are mixed only when these agree."""

    vocab_config: VocabConfig
    bundle_fingerprint: str

    @property
    def vocab_fingerprint(self) -> str:
        return Vocab.from_config(self.vocab_config).fingerprint()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardInput:
    """The records that a shard was made of."""

    records: int
    first: str  # name of the first and the last record
    last: str
    next_source: int  # where the next shard begins: number of the source, number of the record in it
    next_record: int


class StoreWriter:
    """Commits shards in any order, then the manifest. The caller holds the directory's lock."""

    def __init__(self, path: str | os.PathLike, identity: StoreIdentity):
        self._path = pathlib.Path(path)
        self._identity = identity
        self._vocab = Vocab.from_config(identity.vocab_config)
        for folder in (layout.SHARDS, layout.COMMITS, layout.REJECTS):
            (self._path / folder).mkdir(parents=True, exist_ok=True)
        layout.remove_leftovers(self._path)

    def committed(self) -> dict[int, dict[str, Any]]:
        """Commits so far by shard number; StoreError when one is damaged or made with other tokenizers."""
        commits = read_commits(self._path)
        for shard, commit in commits.items():
            if commit["bundle_fingerprint"] != self._identity.bundle_fingerprint:
                raise StoreError(
                    f"{self._path}: shard {layout.shard_name(shard)} was made with tokenizers {commit['bundle_fingerprint']}, "
                    f"this run has {self._identity.bundle_fingerprint}: write to another directory"
                )
        return commits

    def commit(
        self, shard: int, documents: Sequence[TokenDocument], source: ShardInput, rejects: Sequence[dict[str, str]]
    ) -> dict[str, Any]:
        """Write a shard and its rejects, then the file that makes them count. Returns the commit."""
        name = layout.shard_name(shard)
        arrays = self._arrays(documents)
        private = self._path / layout.TEMPORARY / name
        shutil.rmtree(private, ignore_errors=True)
        private.mkdir(parents=True)
        _write_arrays(private, arrays)
        sync_tree(private)
        final = self._path / layout.SHARDS / name
        shutil.rmtree(final, ignore_errors=True)  # torn by a crash between the rename and the commit
        private.rename(final)
        sync(final.parent)
        lines = "".join(json.dumps(reject, ensure_ascii=True, sort_keys=True) + "\n" for reject in rejects)
        reject_file = self._path / layout.REJECTS / f"{name}.jsonl"
        layout.write_atomically(reject_file, lines.encode())

        files = [*sorted(p for p in final.rglob("*") if p.is_file()), reject_file]
        tokens, spans = arrays["tokens"], arrays["spans"]
        content = {
            "format_version": layout.FORMAT_VERSION,
            "shard": shard,
            "documents": len(documents),
            "tokens": len(tokens),
            "spans": len(spans),
            "tokens_by_modality": self._by_modality(self._vocab.modality_of(tokens)),
            "spans_by_modality": self._by_modality(spans[:, 0]),
            "min_id": int(tokens.min()) if len(tokens) else 0,
            "max_id": int(tokens.max()) if len(tokens) else 0,
            "dtype": tokens.dtype.name,
            "bundle_fingerprint": self._identity.bundle_fingerprint,
            "input": dataclasses.asdict(source),
            "rejects": len(rejects),
            **({"pixels": list(arrays["pixels"].shape)} if "pixels" in arrays else {}),
            "files": {
                p.relative_to(self._path).as_posix(): {"bytes": p.stat().st_size, "sha256": layout.sha256_file(p)}
                for p in files
            },
        }
        layout.write_json(self._path / layout.COMMITS / f"{name}.json", content)
        return content

    def finish(self) -> dict[str, Any]:
        """Write the manifest over all committed shards: from now on the store can be opened. Returns the manifest."""
        commits = self.committed()
        if sorted(commits) != list(range(len(commits))):
            missing = min(set(range(len(commits))) - set(commits))
            raise StoreError(
                f"{self._path}: shard {layout.shard_name(missing)} is not committed: run the tokenising command again"
            )

        def total(key: str) -> int:
            return sum(commit[key] for commit in commits.values())

        manifest = {
            "format_version": layout.FORMAT_VERSION,
            "vocab": self._identity.vocab_config.to_dict(),
            "vocab_fingerprint": self._identity.vocab_fingerprint,
            "bundle_fingerprint": self._identity.bundle_fingerprint,
            "shards": len(commits),
            "records": sum(commit["input"]["records"] for commit in commits.values()),
            **{key: total(key) for key in ("documents", "tokens", "rejects")},
            **{
                key: {name: sum(commit[key][name] for commit in commits.values()) for name in self._vocab.names}
                for key in ("tokens_by_modality", "spans_by_modality")
            },
            "data": data_fingerprint(commits),
        }
        layout.write_json(self._path / layout.MANIFEST, manifest)
        return manifest

    def _by_modality(self, rows: np.ndarray) -> dict[str, int]:
        """How many of these rows of the modality table are each."""
        return {name: int(np.count_nonzero(rows == row)) for row, name in enumerate(self._vocab.names)}

    def _arrays(self, documents: Sequence[TokenDocument]) -> dict[str, np.ndarray]:
        tokens, spans, ids, items = [], [], [], []
        offsets = np.zeros((len(documents) + 1, 2), np.int64)
        for i, document in enumerate(documents):
            rows = [(span.modality, span.length, int(span.loss)) for span in document.spans]
            covered = sum(length for _, length, _ in rows)
            if covered != len(document.ids):
                raise ValueError(f"document {document.id}: spans cover {covered} ids of {len(document.ids)}")
            perceived = sum(self._vocab.modalities[span.modality].perceived for span in document.spans)
            if perceived != len(document.items):
                raise ValueError(
                    f"document {document.id}: {perceived} perceived spans have {len(document.items)} pictures"
                )
            items.extend(document.items)
            tokens.append(np.asarray(document.ids))
            spans.extend(rows)
            ids.append(document_hash(document.id))
            offsets[i + 1] = offsets[i] + (covered, len(rows))
        flat = np.concatenate(tokens) if tokens else np.zeros(0, np.int64)
        if flat.size and (flat.min() < 0 or flat.max() >= self._vocab.size):
            raise ValueError(f"ids {flat.min()}..{flat.max()} are outside the vocabulary of {self._vocab.size}")
        arrays = {
            "tokens": flat.astype(self._vocab.store_dtype()),
            "offsets": offsets,
            "spans": np.asarray(spans, np.int32).reshape(-1, 3),
            "document_ids": np.asarray(ids, np.uint64),
        }
        return arrays | {"pixels": np.stack(items).astype(np.uint8)} if items else arrays


def document_hash(document_id: str) -> int:
    """uint64 that stands for a document's id in the store."""
    return int.from_bytes(hashlib.sha256(document_id.encode("utf-8", "surrogatepass")).digest()[:8], "little")


def read_commits(store: pathlib.Path) -> dict[int, dict[str, Any]]:
    """Commits by shard number; StoreError names a damaged one. Half-written files are not seen."""
    commits = {}
    for path in sorted((store / layout.COMMITS).glob("[0-9]*.json")):
        commit = layout.read_json(path, "delete it and run the tokenising command again to rebuild the shard")
        if layout.shard_name(commit["shard"]) != path.stem:
            raise StoreError(
                f"{path} belongs to shard {layout.shard_name(commit['shard'])}: delete it and tokenise again"
            )
        commits[commit["shard"]] = commit
    return commits


def data_fingerprint(commits: dict[int, dict[str, Any]]) -> str:
    """16 hexadecimal digits that stand for every byte of data of the committed shards, in order."""
    digest = hashlib.sha256()
    for shard in sorted(commits):
        for name, file in sorted(commits[shard]["files"].items()):
            digest.update(f"{name} {file['sha256']}\n".encode())
    return digest.hexdigest()[:16]


def _write_arrays(directory: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    import tensorstore

    for name, array in arrays.items():
        spec = layout.array_spec(directory, name, array.shape, array.dtype)
        try:
            tensorstore.open(spec, create=True, delete_existing=True).result().write(array).result()
        except (ValueError, OSError) as error:  # full disk, lost permission
            reason = str(error).splitlines()[0][:200]
            raise StoreError(
                f"{directory / name} cannot be written ({reason}): make room and run the command again"
            ) from error
