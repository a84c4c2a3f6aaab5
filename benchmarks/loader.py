"""How fast batches are made, next to the least that any loader must do, and how full rows are.

Makes a store of random documents (half texts of 50..1500 tokens, half pairs of an image and a caption), then measures warm
batches of one process. The limit it is compared with reads the same number of uint16 ids from a NumPy memmap in random windows
of one row and widens them to int32: no documents, no masks, no targets. Prints one JSON line.

Examples:
  python benchmarks/loader.py
  python benchmarks/loader.py --seq_len 128 --codes_per_image 16 --longest_text 60 --batch_size 64
  python benchmarks/loader.py --plan_documents 1000000
"""

from __future__ import annotations

import argparse
import json
import pathlib
import tempfile
import time

import numpy as np

from chameleon_jax.configs import DataConfig, StoreConfig, text_and_image
from chameleon_jax.data.loader import Loader
from chameleon_jax.data.packing import plan
from chameleon_jax.data.store import SpanTable
from chameleon_jax.data.store_writer import ShardInput, StoreIdentity, StoreWriter
from chameleon_jax.tokenizers.documents import Span, TokenDocument
from chameleon_jax.vocab import Vocab

TEXT, IMAGE = 0, 1  # rows of the modality table


def random_spans(args, count: int, random: np.random.Generator) -> list[list[tuple[int, int]]]:
    """Spans of documents: text alone, or an image with its caption behind or in front."""
    documents = []
    for kind in random.integers(0, 4, count):
        text = (TEXT, int(random.integers(args.shortest_text, args.longest_text + 1)))
        caption = (TEXT, int(random.integers(5, args.longest_caption + 1)))
        image = (IMAGE, args.codes_per_image + 2)
        edge = (TEXT, 1)
        documents.append([text] if kind < 2 else [edge, image, caption] if kind == 2 else [caption, image, edge])
    return documents


def write_store(path: pathlib.Path, args, random: np.random.Generator) -> None:
    vocab_config = text_and_image(codes_per_image=args.codes_per_image)
    vocab = Vocab.from_config(vocab_config)
    writer = StoreWriter(path, StoreIdentity(vocab_config=vocab_config, bundle_fingerprint="random"))
    per_shard = 1024
    for shard, begin in enumerate(range(0, args.documents, per_shard)):
        documents = []
        for i, spans in enumerate(random_spans(args, min(per_shard, args.documents - begin), random), start=begin):
            parts = []
            for modality, length in spans:
                if modality == IMAGE:
                    images = vocab.modalities[IMAGE]
                    parts.append(images.span(random.integers(0, images.stop - images.start, length - 2)))
                else:
                    parts.append(random.integers(vocab.text.start, vocab.text.stop, length))
            chosen = tuple(Span(modality, length, True) for modality, length in spans)
            documents.append(TokenDocument(f"random/{i}", np.concatenate(parts).astype(np.int32), chosen))
        last = begin + len(documents)
        given = ShardInput(
            records=len(documents), first=str(begin), last=str(last - 1), next_source=0, next_record=last
        )
        writer.commit(shard, documents, given, [])
    writer.finish()


def tokens_per_second(make, tokens: int, seconds: float) -> float:
    """Best of three windows, after one call to warm up; `make(i)` yields `tokens` tokens."""
    make(0)
    rates, i = [], 1
    for _ in range(3):
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            make(i)
            i, done = i + 1, done + tokens
        rates.append(done / (time.perf_counter() - start))
    return max(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=8192)
    parser.add_argument("--plan_documents", type=int, default=200_000, help="documents of the packing measurement")
    parser.add_argument("--seq_len", type=int, default=4096)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--codes_per_image", type=int, default=1024)
    parser.add_argument("--shortest_text", type=int, default=50)
    parser.add_argument("--longest_text", type=int, default=1500)
    parser.add_argument("--longest_caption", type=int, default=120)
    parser.add_argument("--seconds", type=float, default=2.0)
    args = parser.parse_args()
    args.shortest_text = min(args.shortest_text, args.longest_text)
    args.longest_caption = max(5, min(args.longest_caption, args.longest_text))
    random = np.random.default_rng(0)

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "store"
        write_store(path, args, random)
        config = DataConfig(stores=(StoreConfig(path=str(path)),), seq_len=args.seq_len)
        loader = Loader(config, args.batch_size, 1_000_000)
        for step in range(loader.stores[0].plan.rows // args.batch_size + 1):
            loader.host_batch(step)  # an epoch, so that the cache is warm
        size = args.batch_size * args.seq_len
        rate = tokens_per_second(loader.host_batch, size, args.seconds)

        flat = pathlib.Path(folder) / "flat.bin"
        random.integers(0, 65536, loader.stores[0].store.tokens, dtype=np.uint16).tofile(flat)
        ids = np.memmap(flat, np.uint16, "r")

        def windows(_: int) -> np.ndarray:
            starts = random.integers(0, len(ids) - args.seq_len, args.batch_size)
            return np.stack([ids[start : start + args.seq_len] for start in starts.tolist()]).astype(np.int32)

        limit = tokens_per_second(windows, size, args.seconds)

    documents = random_spans(args, args.plan_documents, random)
    table = SpanTable(
        offsets=np.cumsum([0, *(len(spans) for spans in documents)]),
        lengths=np.array([length for spans in documents for _, length in spans], np.int32),
        modalities=np.array([modality for spans in documents for modality, _ in spans], np.int8),
        loss=np.ones(sum(len(spans) for spans in documents), bool),
    )
    start = time.perf_counter()
    made = plan(table, (True, False), seq_len=args.seq_len, max_segments_per_row=256, seed=0)
    result = {
        "loader_tokens_per_second": round(rate),
        "memmap_tokens_per_second": round(limit),
        "ratio_to_memmap": round(rate / limit, 4),
        "seq_len": args.seq_len,
        "batch_size": args.batch_size,
        "packing_documents": args.plan_documents,
        "packing_seconds": round(time.perf_counter() - start, 2),
        "packing_fill": round(made.fill, 4),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
