"""Eight simulated CPU devices for the whole suite, quick compilation, and small token stores of random documents."""

import dataclasses
import gc
import importlib.metadata
import os
from pathlib import Path

# Read when the first device is made. Tests run tiny programs once: LLVM's expensive passes would take most of their time, and of
# what is left the newer emitters of fusions half. Unknown flags end a process, and other releases lack the third.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_use_fusion_emitters=false" if importlib.metadata.version("jaxlib").startswith("0.10.") else "",
    ]
).strip()
os.environ["JAX_PLATFORMS"] = "cpu"
# Programs are kept between files, processes and runs: the second run of a file takes a third of the time.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import numpy as np
import pytest

from chameleon_jax.configs import text_and_image
from chameleon_jax.data.store_writer import ShardInput, StoreIdentity, StoreWriter
from chameleon_jax.tokenizers.documents import Document, Segment, TokenDocument, assemble
from chameleon_jax.vocab import Vocab

# Unlike the XLA flag for it, this does not reach the processes that tests start.
jax.config.update("jax_num_cpu_devices", 8)

# A worker comes to hold millions of objects, traced programs above all, and looking through them all for garbage takes seconds
# each time. What outlives a file of tests is not looked through again.
gc.set_threshold(20_000, 20, 20)
gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def left_out_of_later_collections():
    yield
    gc.collect()
    gc.freeze()


# The files that take longest come first, so that no worker is left alone with one of them at the end.
LONGEST = (
    "training/test_bfloat16.py",
    "test_perceived_pictures.py",
    "training/test_loop.py",
    "training/test_initial.py",
    "convert/test_convert.py",
    "generation/test_mesh.py",
    "training/test_step.py",
    "models/test_perception.py",
    "models/test_untied.py",
    "serving/test_command.py",
    "test_modalities.py",
    "tokenizer_training/test_codec.py",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not str(item.path).endswith(LONGEST))


VOCAB = text_and_image(image_codes=50, reserved=4, text_tokens=300, codes_per_image=16)


@dataclasses.dataclass(frozen=True)
class MadeStore:
    path: str
    documents: list[TokenDocument]
    vocab: Vocab


@pytest.fixture(scope="session")
def build_store():
    """build_store(path, count, seed) -> MadeStore: texts, pairs in both orders, and text without loss before an image."""

    def build(path, count=60, seed=0, per_shard=16, bundle_fingerprint="b" * 16, vocab_config=VOCAB, longest=40):
        random = np.random.default_rng(seed)
        vocab = Vocab.from_config(vocab_config)
        name = path.name
        identity = StoreIdentity(vocab_config=vocab_config, bundle_fingerprint=bundle_fingerprint)
        writer, documents = StoreWriter(path, identity), []
        for i in range(count):
            text, quiet, image = (
                Segment("text", "t"),
                Segment("text", "t", loss=False),
                Segment("image", b"", reference="i"),
            )
            segments = [(text,), (text, image), (image, text), (quiet, image), (text, image, text, image, text)][i % 5]
            text_ids, (words, pictures) = vocab.text.stop - vocab.text.start, vocab_config.modalities
            is_text = [segment.modality == words.name for segment in segments]
            texts = iter([random.integers(0, text_ids, random.integers(1, longest)) for _ in range(sum(is_text))])
            images = iter([random.integers(0, pictures.ids, pictures.length) for _ in range(is_text.count(False))])
            codes = [next(texts) if text else next(images) for text in is_text]
            documents.append(assemble(Document(f"{name}/{i}", name, segments), codes, vocab))
        for shard, begin in enumerate(range(0, count, per_shard)):
            part = documents[begin : begin + per_shard]
            given = ShardInput(
                records=len(part), first=part[0].id, last=part[-1].id, next_source=0, next_record=begin + len(part)
            )
            writer.commit(shard, part, given, [])
        writer.finish()
        return MadeStore(str(path), documents, vocab)

    return build


@pytest.fixture
def make_store(tmp_path, build_store):
    """make_store(name, ...) -> MadeStore in the test's own folder."""
    return lambda name="store", **settings: build_store(tmp_path / name, **settings)
