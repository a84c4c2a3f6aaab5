"""Prompts in, ids out: all at once (`generate`), or as a service that takes requests from any thread (`Engine`).

Both are the same scheduler over the same compiled functions. `generate` steps it to the end in the caller's thread, an engine has
a thread for it; a request gets the same ids either way, whatever runs beside it.
"""

from __future__ import annotations

import collections
import functools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Int, UInt8

from chameleon_jax.configs import EngineConfig, GenerationConfig, TransformerConfig
from chameleon_jax.errors import GenerationError
from chameleon_jax.generation.keep import Keep
from chameleon_jax.generation.lanes import Shapes
from chameleon_jax.generation.logprobs import Logprobs
from chameleon_jax.generation.requests import EngineStats, EngineStopped, Generated, QueueFull, Request
from chameleon_jax.generation.scheduler import Job, Scheduler
from chameleon_jax.generation.weights import decoding_form
from chameleon_jax.models import perception
from chameleon_jax.models.transformer import Params
from chameleon_jax.parallel.mesh import mesh_of, using
from chameleon_jax.vocab import Vocab

BLOCK = 64  # ids a request between two looks of the host, where nobody waits for the first ones
MOST_LANES = 512  # that `generate` runs at a time
_SLOT_STEP = 64  # slots of a lane are rounded up to it: few shapes, few compilations
_RATE_SECONDS = 5.0  # over which an engine's rate is told

OnIds = Callable[..., object]  # of new ids, and of their Logprobs where the request asks for them
OnEnd = Callable[[Generated | GenerationError], object]


def slots_for(longest: int, context: int) -> int:
    """Slots of a lane that holds so many ids of prompt and output, of a model with this context."""
    return min(longest + -longest % _SLOT_STEP, context)


def generate(
    weights: Params,
    model_config: TransformerConfig,
    vocab: Vocab,
    prompts: Sequence[Int[np.ndarray, "_"]],
    config: GenerationConfig,
    *,
    row_ids: Sequence[int] | None = None,
    pictures: Sequence[Sequence[UInt8[np.ndarray, "side side 3"]]] | None = None,
    logprobs: int | None = None,
    keep: Keep | None = None,
    donate: bool = False,
) -> list[Generated]:
    """Continue every prompt. All run together, each until it ends by itself.

    A prompt is ids, usually from `prompt.encode_turns`. It may end in a begin marker, of a grid also in the height, or height and
    width, behind it: then that span is written first. In a mode of one modality with markers the marker is written, as the first
    id of the output, if the prompt lacks it. `pictures` are those that each prompt's spans of patches stand for, `logprobs` and
    `keep` are as in `Request`. `row_ids` are the numbers by which rows draw (0, 1, ... by default, none negative): a prompt with
    the same seed and row id gives the same output in any batch, to the rounding of its logits. It runs on the mesh on which the
    weights lie, or the one in use. The weights are copied for the call; `donate` them if they are not needed afterwards, and
    their memory is used again.

    Raises GenerationError, before anything is compiled, for a prompt that cannot be served.
    """
    prompts = [np.asarray(prompt) for prompt in prompts]
    if not prompts:
        return []
    _check_vocab(model_config, vocab)
    row_ids = range(len(prompts)) if row_ids is None else row_ids
    if len(row_ids) != len(prompts):
        raise GenerationError(f"{len(prompts)} prompts have {len(row_ids)} row ids; give one for each")
    pictures = [()] * len(prompts) if pictures is None else pictures
    if len(pictures) != len(prompts):
        raise GenerationError(f"{len(prompts)} prompts have {len(pictures)} lists of pictures; give one for each")
    shapes = Shapes(model=model_config, vocab=vocab)
    requests = [
        Request(prompt=prompt, config=config, row_id=int(i), pictures=tuple(seen), logprobs=logprobs, keep=keep)
        for prompt, i, seen in zip(prompts, row_ids, pictures, strict=True)
    ]
    jobs = [
        Scheduler.job(shapes, request, model_config.max_seq_len, f"prompt {i}") for i, request in enumerate(requests)
    ]
    longest = max(len(job.request.prompt) + job.checked.remaining for job in jobs)
    slots = slots_for(longest, model_config.max_seq_len)
    count = max(max(len(job.contexts) for job in jobs), min(MOST_LANES, sum(len(job.contexts) for job in jobs)))
    results: list[Generated | GenerationError | None] = [None] * len(jobs)
    with using(mesh_of(weights)):
        scheduler = Scheduler(
            decoding_form(weights, model_config, "compute", donate=donate),
            shapes,
            count=count,
            slots=slots,
            block=BLOCK,
        )
        for i, job in enumerate(jobs):
            job.on_end = functools.partial(results.__setitem__, i)
            scheduler.submit(job)
        while scheduler.step():
            pass
    for i, result in enumerate(results):
        if isinstance(result, GenerationError):
            raise GenerationError(f"prompt {i}: {result}")
    return results


class Engine:
    """Takes requests from any thread and runs them together, in a thread of its own. A context manager that drains at its end.

    `weights` are used in the model's compute dtype, or as `config.weights` says, and divided over `mesh`, by default the one on
    which they lie. They are copied; `donate` them if they are not needed elsewhere, and the engine is all that holds weights.
    The cache of all slots is made at once: `stats().cache_bytes`.
    """

    def __init__(
        self,
        weights: Params,
        model: TransformerConfig,
        vocab: Vocab,
        config: EngineConfig = EngineConfig(),  # noqa: B008
        *,
        mesh: Mesh | None = None,
        donate: bool = False,
    ):
        _check_vocab(model, vocab)
        self.model, self.vocab, self.config = model, vocab, config
        self._mesh = mesh or mesh_of(weights)
        self._shapes = Shapes(model=model, vocab=vocab)
        self._context = min(config.context or model.max_seq_len, model.max_seq_len)
        with using(self._mesh):
            self._scheduler = Scheduler(
                decoding_form(weights, model, config.weights, donate=donate),
                self._shapes,
                count=config.slots,
                slots=self._context,
                block=config.block,
            )
        self._changed = threading.Condition()
        self._new: collections.deque[Job] = collections.deque()
        self._closing = self._failed = None
        self._requests = self._tokens = 0
        self._recent: collections.deque[tuple[float, int]] = collections.deque()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, on_ids: OnIds, on_end: OnEnd) -> RequestHandle:
        """Check and queue a request. Raises GenerationError for one that cannot be served, QueueFull for one too many.

        `on_ids` is called with every piece of new ids (and their `Logprobs` as a second argument, if the request asks for them),
        then `on_end` once: with the whole output, or with a GenerationError if the engine failed or the model gave no numbers. Both
        are called from the engine's thread, perhaps before `submit` has returned. All requests wait while a callback runs, so it
        must not block; it may submit, cancel and ask for `stats`, but not close.

        What a callback raises, of whatever kind, is logged and concerns its own request alone: after an exception in `on_ids` the
        request is cancelled, gets no more ids, and `on_end` is called with a GenerationError whose cause is that exception; an
        exception in `on_end` has no further effect.
        """
        job = Scheduler.job(self._shapes, request, self._context)
        if len(job.contexts) > self._scheduler.lane_count:
            raise GenerationError(
                f"guidance of the prompt needs {len(job.contexts)} slots, the engine has {self._scheduler.lane_count}: give it "
                "more, or leave guidance out"
            )
        handle = RequestHandle(job, on_ids, on_end)
        job.on_ids, job.on_end = functools.partial(self._pass_ids, handle), handle._pass_end
        with self._changed:
            if self._failed is not None:
                raise EngineStopped(f"the engine has failed: {self._failed}")
            if self._closing is not None:
                raise EngineStopped("the engine takes no more requests: it is closing")
            waiting = len(self._new) + self._scheduler.queued
            if waiting >= self.config.max_queued + self._scheduler.free:
                raise QueueFull(f"{waiting} requests wait already; {self.config.max_queued} are the most", 5.0)
            self._new.append(job)
            self._requests += 1
            self._changed.notify()
        return handle

    def stream(self, request: Request) -> EngineStream:
        """Submit a request and read its ids as an iterator. Raises as `submit` does."""
        return EngineStream(self, request)

    def stats(self) -> EngineStats:
        """What runs and waits now."""
        now = time.monotonic()
        with self._changed:
            while self._recent and self._recent[0][0] < now - _RATE_SECONDS:
                self._recent.popleft()
            return EngineStats(
                slots=self._scheduler.lane_count,
                running=self._scheduler.running,
                queued=len(self._new) + self._scheduler.queued,
                requests=self._requests,
                tokens=self._tokens,
                tokens_per_second=sum(count for _, count in self._recent) / _RATE_SECONDS,
                cache_bytes=self._scheduler.cache_bytes,
                failed=self._failed,
            )

    def close(self, drain: bool = True) -> None:
        """Take no more requests, and wait: for all that run or wait (`drain`), or only for the block under way."""
        with self._changed:
            self._closing = "drain" if drain else "stop"
            self._changed.notify()
        self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close(drain=exception[0] is None)

    def _pass_ids(self, handle: RequestHandle, ids: np.ndarray, *logprobs: Logprobs) -> None:
        with self._changed:
            self._tokens += len(ids)
            self._recent.append((time.monotonic(), len(ids)))
        handle._pass_ids(ids, *logprobs)

    def _run(self) -> None:
        jobs: list[Job] = []
        try:
            with using(self._mesh):
                busy = False
                while True:
                    with self._changed:
                        while not (busy or self._new or self._closing):
                            self._changed.wait()
                        if self._closing == "drain" and not busy and not self._new:
                            return
                        new, self._new = list(self._new), collections.deque()
                        for job in new:
                            self._scheduler.submit(job)
                    jobs = [job for job in [*jobs, *new] if not job.ended]
                    if self._closing == "stop":
                        for job in jobs:
                            job.cancelled = True
                    busy = self._scheduler.step()
                    if self._closing == "stop" and not busy:
                        return
        except BaseException as error:  # whoever waits must hear of it
            with self._changed:
                self._failed = f"{type(error).__name__}: {error}"
                jobs += self._new
            for job in jobs:  # those whose end was told already ignore it
                job.on_end(EngineStopped(f"the engine has failed: {self._failed}"))
            raise


class RequestHandle:
    """A request that an engine has taken, with its callbacks."""

    def __init__(self, job: Job, on_ids: OnIds, on_end: OnEnd):
        self._job, self._on_ids, self._on_end = job, on_ids, on_end
        self._failure: GenerationError | None = None
        self._is_told = False

    def cancel(self) -> None:
        """From any thread: stop when the blocks under way are done, and free the slots. No effect after the end."""
        self._job.cancelled = True

    def _pass_ids(self, ids: np.ndarray, *logprobs: Logprobs) -> None:
        if self._failure is not None:
            return
        try:
            self._on_ids(ids, *logprobs)
        except BaseException as error:  # not even an exit or a cancellation of the caller's may end the engine's thread
            logging.exception("a request is cancelled: its on_ids failed")
            self._failure = GenerationError(f"on_ids of the request failed: {type(error).__name__}: {error}")
            self._failure.__cause__ = error
            self.cancel()

    def _pass_end(self, result: Generated | GenerationError) -> None:
        if self._is_told:
            return
        self._is_told = True
        try:
            self._on_end(self._failure or result)
        except BaseException:  # as above
            logging.exception("on_end of a request failed")


class EngineStream:
    """A request as an iterator of pieces of new ids, as they come; it ends when the request has. For one reader.

    Log-probabilities, if asked for, are in the `result`.
    """

    def __init__(self, engine: Engine, request: Request):
        self._pieces: queue.SimpleQueue[np.ndarray | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._result: Generated | GenerationError | None = None
        self._handle = engine.submit(request, lambda ids, logprobs=None: self._pieces.put(ids), self._end)

    def __iter__(self) -> Iterator[Int[np.ndarray, "n"]]:
        while (piece := self._pieces.get()) is not None:
            yield piece
        self._pieces.put(None)  # for a reader that asks again

    def cancel(self) -> None:
        """Stop when the blocks under way are done. Iteration ends then; no effect after the end."""
        self._handle.cancel()

    def result(self) -> Generated:
        """Wait for the end. Raises GenerationError if the engine failed or the model gave no numbers."""
        self._ended.wait()
        if isinstance(self._result, GenerationError):
            raise self._result
        return self._result

    def _end(self, result: Generated | GenerationError) -> None:
        self._result = result
        self._ended.set()
        self._pieces.put(None)


def _check_vocab(model: TransformerConfig, vocab: Vocab) -> None:
    if model.vocab_size < vocab.size:
        raise GenerationError(
            f"the model has {model.vocab_size} ids, the vocabulary {vocab.size}: they are not of one run"
        )
    if problem := perception.problem(model, vocab):
        raise GenerationError(problem)
    if model.untied and model.modalities != len(vocab.modalities):
        raise GenerationError(
            f"the model's untied parts are of {model.modalities} modalities, the vocabulary has {len(vocab.modalities)}: they are "
            "not of one run"
        )
