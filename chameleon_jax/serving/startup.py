"""From a workdir to an engine that answers at once: weights, engine, and the programs that requests run through, run once.

Programs are compiled by their shapes: a prefill for each power of two that holds the prompt, a block of decoding for each that
holds prompt and output, a codec for each size of its data. All modes, settings and guidance share them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Int
from PIL import Image

from chameleon_jax.configs import GenerationConfig, SamplingConfig
from chameleon_jax.errors import ConfigError
from chameleon_jax.generation.engine import Engine
from chameleon_jax.generation.loading import load_weights
from chameleon_jax.generation.prompt import encode_turns, perceived_pictures
from chameleon_jax.generation.requests import Request
from chameleon_jax.generation.scheduler import SMALLEST_BUCKET
from chameleon_jax.progress import progress
from chameleon_jax.serving.service import Service
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.codec import Codec
from chameleon_jax.tokenizers.documents import Segment
from chameleon_jax.tokenizers.perceived import PatchCodec
from chameleon_jax.tokenizers.pictures import PictureCodec

LONGEST = 2048  # ids of a prompt for which programs are made ahead; longer ones are rare and compile when they come


def name_models(given: list[str], name: str) -> dict[str, str]:
    """Names by workdir: of NAME=FOLDER the name; runs/emoji/model is emoji, by the last part that says something.

    What is a folder as it stands is not NAME=FOLDER: sweeps call folders `lr=3`.
    """
    named = {}
    for text in given:
        own, equals, folder = text.partition("=")
        is_named = bool(own and equals and "/" not in own) and not Path(text).exists()
        workdir = folder if is_named else text
        parts = [part for part in Path(workdir).resolve().parts if part not in ("model", "/")]
        if workdir in named:
            raise ConfigError(f"--workdir={workdir} is given twice")
        named[workdir] = own if is_named else name if name and len(given) == 1 else (parts or ["chameleon"])[-1]
    return named


def start_engine(service: Service, workdir: str | Path, mesh: Mesh | None) -> None:
    """Open the service with an engine of the workdir's newest checkpoint that verifies. Raises as `load_weights` does."""
    started = time.monotonic()
    weights = load_weights(workdir, mesh)
    engine = Engine(weights.params, weights.model, service.bundle.vocab, service.config.engine, donate=True)
    slots, cache = engine.config.slots, engine.stats().cache_bytes / 1e9
    logging.info("step %d of %s: %d slots, %.2f GB of cache", weights.step, workdir, slots, cache)
    warm_up(engine, service.bundle, service.context, service.model_name)
    service.open(engine)
    logging.info("%s is loaded and compiled after %.1f s", service.model_name, time.monotonic() - started)


def warm_up(engine: Engine, bundle: TokenizerBundle, context: int, name: str) -> None:
    """Run one prompt of each length through the engine, and each codec in both directions; `name` is for people.

    The engine must be idle. Prompts that come together in a group are compiled when the first group comes.
    """
    requests = [*_prompts(bundle, context), *_perceived(bundle, context)]
    codecs = [(row, codec) for row, codec in bundle.codecs.items() if codec.can_decode]
    with progress(f"compile {name}", total=len(requests) + len(codecs), unit="programs") as bar:
        for request in requests:
            engine.stream(request).result()
            bar.advance()
        _stop_one(engine, bundle, requests[0].prompt)
        for row, codec in codecs:
            _run_codec(bundle, row, codec)
            bar.advance()


def _prompts(bundle: TokenizerBundle, context: int) -> Iterator[Request]:
    """A prompt of each power of two fills its own prefill, and with its output the next block of decoding."""
    vocab, most = bundle.vocab, min(context - 1, LONGEST)
    lengths = [SMALLEST_BUCKET]
    while lengths[-1] < most:
        lengths.append(2 * lengths[-1])
    config = GenerationConfig(mode=vocab.text.name, max_tokens=1)
    prompts = [np.full(min(length, context - 1), vocab.text.start, np.int32) for length in lengths]
    for prompt in prompts:
        prompt[0] = vocab.bos
    # The first twice: a state that has not been through a block yet has a program of its own. And once with
    # log-probabilities, which the page asks for; of longer ones they are rarely asked.
    yield Request(prompt=prompts[0], config=config)
    yield Request(prompt=prompts[0], config=config, logprobs=0)
    yield from (Request(prompt=prompt, config=config) for prompt in prompts)


def _stop_one(engine: Engine, bundle: TokenizerBundle, prompt: Int[np.ndarray, "n"]) -> None:
    """Stop a request that runs, which is a program too. Drawn almost evenly, its ids end it hardly ever before."""
    even = {bundle.vocab.text.name: SamplingConfig(temperature=100.0, top_p=1.0)}
    config = GenerationConfig(mode=bundle.vocab.text.name, max_tokens=LONGEST, sampling=even)
    stream = engine.stream(Request(prompt=prompt, config=config))
    next(iter(stream), None)
    stream.cancel()
    stream.result()


def _perceived(bundle: TokenizerBundle, context: int) -> Iterator[Request]:
    """A prompt with a picture in patches, whose prefill has the patch encoder in it."""
    name, codec = bundle.image_input
    if isinstance(codec, PatchCodec):
        blank = Image.new("RGB", (codec.config.resolution,) * 2)
        turn = [Segment(name, codec.prepare(blank))]
        prompt = encode_turns([turn], bundle)
        if len(prompt) < context:
            config = GenerationConfig(mode=bundle.vocab.text.name, max_tokens=1)
            yield Request(prompt=prompt, config=config, pictures=perceived_pictures([turn], bundle))


def _run_codec(bundle: TokenizerBundle, name: str, codec: Codec) -> None:
    """Decode and encode one item; where items have many sizes, the largest square."""
    row = bundle.vocab_config.modalities[bundle.vocab.row(name)]
    shape = (row.length,)
    if isinstance(codec, PictureCodec) and codec.is_grid:
        shape = (codec.config.resolution // codec.config.grid_pixels * row.grid_unit,) * 2
    items = codec.decode(np.zeros((1, *shape), np.int32))
    codec.to_file(items[0])
    codec.encode(items)
