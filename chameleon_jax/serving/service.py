"""One model that is served: its parts, its threads, and the requests in hand.

The event loop only moves bytes. Pictures are decoded and prompts encoded on `workers`, pictures that come out on `painters`, ids
are made on the engine's thread. The number of threads is fixed, however many requests are open.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Int

from chameleon_jax.configs import GenerationConfig, ServeConfig, TransformerConfig
from chameleon_jax.errors import ChameleonError, GenerationError
from chameleon_jax.generation.checks import check_names
from chameleon_jax.generation.engine import Engine
from chameleon_jax.generation.grammar import written_rows
from chameleon_jax.generation.keep import Keep
from chameleon_jax.generation.prompt import Format, Part, check_decoders, image_grid, perceived_pictures
from chameleon_jax.generation.reader import OutputReader, Pieces, SpanPiece, TextPiece
from chameleon_jax.generation.requests import EngineStats, Generated, Request
from chameleon_jax.serving.errors import ApiError, bad_request, too_many
from chameleon_jax.serving.jobs import Jobs, NewIds
from chameleon_jax.serving.keep import kept_codes
from chameleon_jax.serving.logprobs import LogprobWriter, asked_logprobs
from chameleon_jax.serving.messages import build_ids, context_exceeded, fits, read_turns, shortened
from chameleon_jax.serving.metrics import Metrics
from chameleon_jax.serving.replies import EncodedSpan, Update, Usage
from chameleon_jax.serving.schema import ChatRequest, CompletionRequest, ImagesRequest, RequestFields
from chameleon_jax.serving.settings import choose_format, generation_config, image_sizes, parse_size
from chameleon_jax.serving.tolerance import last_alone, nearest_size
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.code_queue import CodeQueue
from chameleon_jax.tokenizers.codec import Codec
from chameleon_jax.tokenizers.perceived import PatchCodec
from chameleon_jax.tokenizers.pictures import PictureCodec

_THREADS = 2  # of each kind: a picture of the largest size takes some hundred megabytes while it is prepared
_PREVIEWS_WAITING = 4  # more are left out: a preview is of use only while it is new
_FINISH = {"eos": "stop", "spans": "stop", "length": "length"}

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedRequest:
    """What is to be generated: `choices` outputs of each prompt, which perceives its own `pictures`."""

    prompts: list[Int[np.ndarray, "n"]]
    pictures: list[tuple[np.ndarray, ...]]
    config: GenerationConfig
    choices: int
    stop: list[str]
    partial_every: int  # 0 = no previews
    content_format: Literal["text", "parts", "markdown"]
    logprobs: int | None  # alternatives of each id; None: no log-probabilities
    keep: Keep | None
    with_codes: bool  # beside the files of pictures and sounds
    usage: Usage


class Service:
    """All that the routes share. It is there before its engine is: what needs one waits until `open` brings it."""

    def __init__(
        self,
        *,
        bundle: TokenizerBundle,
        config: ServeConfig,
        model_name: str,
        model: TransformerConfig | None = None,
        engine: Engine | None = None,
        format: Format = "chat",
        metrics: Metrics | None = None,
    ):
        """`model` is that of the engine that comes later; an `engine` given here is open at once.

        `format` is what the config's `auto` stands for, `metrics` those that several services share. Raises GenerationError for
        defaults for which every request would be refused.
        """
        if config.format == "auto":
            config = dataclasses.replace(config, format=format)
        self.bundle, self.config, self.model_name = _limited(bundle, config), config, model_name
        check_names(bundle.vocab, config.generation)
        check_decoders(bundle, config.mode or bundle.vocab.text.name)
        self.created = int(time.time())
        model = model or engine.model
        self.context = min(config.engine.context or model.max_seq_len, model.max_seq_len)
        self._engine: Future[Engine] = Future()
        self._before = (0, 0)  # requests and tokens of the engine that were nobody's, as those that compile it
        self._engine.set_running_or_notify_cancel()  # a request that no longer waits does not cancel it for the others
        if engine is not None:
            self.open(engine)
        self.pieces, self.metrics = Pieces(bundle), metrics or Metrics()
        self.metrics.watch(model_name, self.stats)
        longest = max((row.length for row in bundle.vocab_config.modalities), default=0)
        self.partial_every = config.partial_every or max(1, longest // 8)
        self.image_sizes = image_sizes(bundle)
        self._workers, self._painters = (ThreadPoolExecutor(_THREADS, name) for name in ("prompts", "pictures"))
        self._previews = 0
        self._open: set[Jobs] = set()
        self._in_hand, self._places = 0, config.engine.slots + config.engine.max_queued
        self._seconds = 1.0  # that a request takes, about
        self.draining = False

    # The engine.

    @property
    def engine(self) -> Engine | None:
        """None until `open`, and where the server stops before."""
        return self._engine.result() if self._engine.done() and not self._engine.exception() else None

    def open(self, engine: Engine) -> None:
        """Let requests, also those that wait, have this engine. From any thread."""
        stats = engine.stats()
        self._before = (stats.requests, stats.tokens)
        with contextlib.suppress(InvalidStateError):  # the server has stopped meanwhile
            self._engine.set_result(engine)

    def stats(self) -> EngineStats:
        """The engine's since it is open, or those of one in which nothing has happened yet."""
        if self.engine is not None:
            stats, (requests, tokens) = self.engine.stats(), self._before
            return dataclasses.replace(stats, requests=stats.requests - requests, tokens=stats.tokens - tokens)
        nothing = dict.fromkeys(("running", "queued", "requests", "tokens", "cache_bytes"), 0)
        return EngineStats(slots=self.config.engine.slots, tokens_per_second=0.0, **nothing)

    @property
    def status(self) -> Literal["ok", "compiling", "draining", "failed"]:
        """`compiling` from the start until the first request would be answered at once."""
        if self.stats().failed:
            return "failed"
        return "draining" if self.draining else "ok" if self.engine else "compiling"

    # Requests in hand.

    @property
    def places_left(self) -> int:
        """Requests that may come before one is refused."""
        return self._places - self._in_hand

    @contextlib.contextmanager
    def admit(self) -> Iterator[None]:
        """A place for a request, before its body is read: so many bodies and pictures are in memory at most.

        Raises ApiError 429 when there is none.
        """
        slots, places = self.config.engine.slots, self._places
        if self.places_left <= 0:
            retry = self._seconds * (self._in_hand - slots + 1) / slots
            raise too_many(f"{places} requests are in hand, which is all that fit; try again", min(retry, 60))
        self._in_hand += 1
        self.metrics.open.inc()
        try:
            yield
        finally:
            self._in_hand -= 1
            self.metrics.open.dec()

    def took(self, seconds: float) -> None:
        """Tell how long a request was in hand: `Retry-After` is a guess from the last ones."""
        self._seconds += 0.1 * (seconds - self._seconds)

    def stop_streams(self) -> None:
        """Tell those whose answer is not complete that it will not be."""
        stopping = ApiError(503, "the server is stopping", code="stopping")
        with contextlib.suppress(InvalidStateError):
            self._engine.set_exception(stopping)
        for jobs in list(self._open):
            jobs.fail(stopping)

    def close(self) -> None:
        for jobs in list(self._open):
            jobs.cancel()
        if self.engine is not None:
            self.engine.close(drain=False)
        for pool in (self._workers, self._painters):
            pool.shutdown(wait=False, cancel_futures=True)

    # From the fields of a request to a prepared one.

    async def prepare(self, request: RequestFields) -> PreparedRequest:
        """Waits for the engine, once the request is known to be good. Raises ApiError for what cannot be served."""
        try:
            prepared = await self.on_worker(self._prepare, request)
        except ChameleonError as error:
            raise bad_request(str(error)) from None
        try:
            await asyncio.wait_for(asyncio.wrap_future(self._engine), self.config.request_seconds)
        except TimeoutError:
            raise ApiError(
                503, "the model is not compiled yet; try again", code="compiling", headers={"Retry-After": "30"}
            ) from None
        return prepared

    def _prepare(self, request: RequestFields) -> PreparedRequest:
        size = self._image_size(request)
        config = generation_config(request, self.config, self.context, self.bundle, size)
        count, choices = len(request.prompt) if isinstance(request, CompletionRequest) else 1, request.n or 1
        if count * choices > self.config.max_choices:
            raise bad_request(f"prompt: {count} prompts of {choices} choices, {self.config.max_choices} are the most")
        prompts, pictures = self._prompts(request, size, config)
        for prompt in prompts:
            if len(prompt) >= self.context:
                raise context_exceeded(f"the prompt has {len(prompt)} ids, the context {self.context}")
        every = (request.partial_every or self.partial_every) if request.stream else 0
        if isinstance(request, ImagesRequest):
            previews = request.partial_images or 0 if request.stream else 0
            name = config.mode
            row = self.bundle.vocab_config.modalities[self.bundle.vocab.row(name)]
            codes = int(np.prod(config.grids.get(name, row.length)))
            every = -(-codes // (previews + 1)) if previews else 0
        return PreparedRequest(
            prompts=prompts,
            pictures=pictures,
            config=config,
            choices=choices,
            stop=request.stop or [],
            partial_every=every,
            content_format=request.content_format or self.config.content_format,
            logprobs=asked_logprobs(request),
            keep=kept_codes(request, config, self.bundle.vocab),
            with_codes=bool(request.return_token_ids),
            usage=Usage(prompt=sum(map(len, prompts))),
        )

    def _image_size(self, request: RequestFields) -> tuple[int, int] | None:
        asked = request.image_size
        if isinstance(request, ImagesRequest) and request.size != "auto":
            asked = request.size or asked
        if not asked:
            return None
        try:
            image_grid(parse_size(asked), self.bundle)
        except GenerationError:  # of a model of one size for any
            return nearest_size(parse_size(asked), self.image_sizes, request.notes)
        return parse_size(asked)

    def _prompts(
        self, request: RequestFields, size: tuple[int, int] | None, config: GenerationConfig
    ) -> tuple[list[Int[np.ndarray, "n"]], list[tuple[np.ndarray, ...]]]:
        """The ids of each prompt, and the pictures that it perceives."""
        format = choose_format(request, self.config)
        if isinstance(request, ChatRequest):
            messages = request.messages
            if format == "completion" and request.format is None:
                messages = last_alone(messages, request.notes)
            conversations = [read_turns(messages, format, self.bundle, self.config.max_media)]
        elif isinstance(request, CompletionRequest):
            conversations = [[[text]] for text in request.prompt]
        else:
            conversations = [[[request.prompt]]]
        longest = self.pieces.longest * self.context
        queue = CodeQueue(self.bundle, batch=1)  # one for all tries: a picture is encoded once

        def ids(turns: list[list[Part]]) -> Int[np.ndarray, "n"]:
            return build_ids(turns, format, self.bundle, longest=longest, image_size=size, queue=queue)

        if len(conversations[0]) > 1:
            has_system = request.messages[0].role in ("system", "developer")
            most = self.context - self._room(config)
            conversations = [shortened(conversations[0], has_system, lambda t: fits(ids, t, most), request.notes)]
        prompts = [ids(turns) for turns in conversations]
        return prompts, [perceived_pictures(c, self.bundle) for c in conversations]

    def _room(self, config: GenerationConfig) -> int:
        """Ids that a chat leaves for its answer: what was asked for, but a quarter of the context at most, and a whole span."""
        vocab, table = self.bundle.vocab, self.bundle.vocab_config.modalities
        spans = [table[row].length + 2 for row in written_rows(vocab, config.mode) if row in vocab.marked]
        return max(min(config.max_tokens, self.context // 4), *spans, 1)

    async def on_worker(self, function: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._workers, function, *args)

    # From a prepared request to updates.

    def start(self, prepared: PreparedRequest) -> Jobs:
        """Submit a request of the engine for each output. Raises ApiError 429, 400 or 503."""
        requests = [
            Request(
                prompt=prompt,
                config=prepared.config,
                row_id=choice,
                pictures=pictures,
                logprobs=prepared.logprobs,
                keep=prepared.keep,
            )
            for prompt, pictures in zip(prepared.prompts, prepared.pictures, strict=True)
            for choice in range(prepared.choices)
        ]
        return Jobs(self.engine, requests, self.config.request_seconds)

    async def updates(self, prepared: PreparedRequest, jobs: Jobs) -> AsyncIterator[Update]:
        """What comes of the jobs, choice by choice in order; leaving early cancels them."""
        readers = [
            OutputReader(self.pieces, stop=prepared.stop, partial_every=prepared.partial_every)
            for _ in range(len(prepared.prompts) * prepared.choices)
        ]
        writers = [LogprobWriter(self.pieces) for _ in readers]
        ended: set[int] = set()
        self._open.add(jobs)
        started = time.monotonic()
        waiting = True
        try:
            async for number, item in jobs.pieces():
                if waiting:
                    waiting = False
                    self.metrics.first_token.observe(time.monotonic() - started)
                if number in ended:  # its stop string came; the rest is for nobody
                    continue
                reader = readers[number]
                is_end, read = isinstance(item, Generated), sum(reader.tokens.values())
                parts = reader.finish() if is_end else reader.feed(item.ids)
                ids = () if is_end else tuple(map(int, item.ids[: sum(reader.tokens.values()) - read]))
                is_told = not is_end and item.logprobs is not None
                logprobs = writers[number].write(ids, item.logprobs) if is_told else None
                # Told with each span, so counted before it is.
                prepared.usage.generated = dict.fromkeys(map(self._kind, self.bundle.vocab.names), 0)
                for name in self.bundle.vocab.names:  # several may be of one kind
                    prepared.usage.generated[self._kind(name)] += sum(reader.tokens[name] for reader in readers)
                async for update in self._write(number, parts, prepared.with_codes):
                    yield dataclasses.replace(update, ids=ids, logprobs=logprobs)
                    ids, logprobs = (), None
                if ids:
                    yield Update(choice=number, ids=ids, logprobs=logprobs)
                if is_end or reader.stopped:
                    ended.add(number)
                    jobs.cancel(number)
                    yield Update(choice=number, finish_reason=_reason(item, reader.stopped))
        finally:
            jobs.cancel()
            self._open.discard(jobs)

    async def _write(
        self, choice: int, parts: Sequence[TextPiece | SpanPiece], with_codes: bool
    ) -> AsyncIterator[Update]:
        for part in parts:
            if isinstance(part, TextPiece):
                yield Update(choice=choice, text=part.text)
            elif not part.partial or self._previews < _PREVIEWS_WAITING:
                self._previews += part.partial
                try:
                    span = await asyncio.get_running_loop().run_in_executor(
                        self._painters, self._encode, part, with_codes
                    )
                finally:
                    self._previews -= part.partial
                self.metrics.spans.labels(part.modality).inc(part.done == part.codes.size)  # not of a further piece
                yield Update(choice=choice, span=span)

    def _encode(self, piece: SpanPiece, with_codes: bool) -> EncodedSpan:
        codec = self.bundle.codecs.get(piece.modality)
        file, codes = b"", []
        if codec is None or with_codes:
            codes = piece.codes.reshape(-1)[: piece.done].tolist()
        if codec is not None:
            file = codec.to_file(codec.decode(piece.codes[None])[0], quick=piece.partial)
        return EncodedSpan(
            modality=piece.modality,
            media=codec.media if codec else "codes",
            mime=codec.mime if codec else "",
            index=piece.index,
            base64=base64.b64encode(file).decode("ascii"),
            codes=codes,
            done=piece.done,
            of=piece.of,
            partial=piece.partial,
        )

    def _kind(self, name: str) -> str:
        """What clients call the kind of a modality."""
        codec = self.bundle.codecs.get(name)
        return "text" if name == self.bundle.vocab.text.name else codec.media if codec else name


def _limited(bundle: TokenizerBundle, config: ServeConfig) -> TokenizerBundle:
    """The bundle whose codecs take no larger pictures than the server."""

    def limit(codec: Codec) -> Codec:
        if not isinstance(codec, PictureCodec | PatchCodec):
            return codec
        most = min(config.max_pixels, codec.config.max_pixels)
        return dataclasses.replace(codec, config=dataclasses.replace(codec.config, max_pixels=most))

    return dataclasses.replace(bundle, codecs={name: limit(codec) for name, codec in bundle.codecs.items()})


def _reason(item: NewIds | Generated, stopped: bool) -> str:
    """OpenAI's word for it. An output that the engine cut, at its end or of its own accord, is `length`."""
    if stopped or not isinstance(item, Generated):
        return "stop"
    return _FINISH.get(item.finish_reason, "length")
