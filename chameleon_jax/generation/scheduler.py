"""Which request runs in which lanes: continuous batching on the host, a block of tokens at a time.

The host looks at a block only after it has sent off the next one. So it hands out ids, frees lanes and takes new
requests while the device works, and a lane is used again one block after its request has ended.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import UInt8

from chameleon_jax.configs import GenerationConfig
from chameleon_jax.errors import GenerationError
from chameleon_jax.generation import grammar, lanes
from chameleon_jax.generation.checks import Checked, check_logprobs, check_names, check_pictures, check_prompt
from chameleon_jax.generation.grammar import OUTSIDE, FinishReason
from chameleon_jax.generation.keep import kept_ids
from chameleon_jax.generation.lanes import Progress, Role, Rows, Shapes
from chameleon_jax.generation.logprobs import Logprobs
from chameleon_jax.generation.requests import Generated, Request
from chameleon_jax.generation.sampling import SamplingArrays
from chameleon_jax.models.perception import stack_pictures
from chameleon_jax.models.transformer import Params
from chameleon_jax.parallel.mesh import DECODING, batch_shards
from chameleon_jax.vocab import TEXT, Vocab

PREFILL_GROUP = 8  # prompts that are run together; a few, up to half a group, are run one by one
SMALLEST_BUCKET = 32  # ids of a prefill and slots looked at are powers of two from here


@dataclasses.dataclass(eq=False)
class Job:
    """A request on its way. `on_ids` gets new ids, and their log-probabilities if the request asks for them; `on_end` the whole
    output or an error. Both are called by the scheduler.
    """

    request: Request
    checked: Checked
    contexts: list[tuple[Role, np.ndarray]]  # of its lanes, the leader's first
    kept: tuple[int, np.ndarray] | None = None  # as `keep.kept_ids` gives it
    on_ids: Callable[..., None] = lambda ids, logprobs=None: None
    on_end: Callable[[Generated | GenerationError], None] = lambda result: None
    cancelled: bool = False
    ended: bool = False
    places: list[int] = dataclasses.field(default_factory=list)
    pieces: list[np.ndarray] = dataclasses.field(default_factory=list)
    logprobs: list[Logprobs] = dataclasses.field(default_factory=list)


class Scheduler:
    """Runs jobs in `count` lanes of `slots` ids each. Not for use from several threads."""

    def __init__(self, weights: Params, shapes: Shapes, *, count: int, slots: int, block: int):
        count += -count % batch_shards(DECODING)
        self._weights, self._shapes, self._block = weights, shapes, block
        self._lanes = lanes.empty(shapes, idle_rows(count, slots, shapes))
        self._slots, self._free = slots, list(range(count))[::-1]
        self.lane_count = count
        self._queue: collections.deque[Job] = collections.deque()
        self._running: dict[int, Job] = {}  # by leader's lane
        self._sent: tuple[Progress, dict[int, Job]] | None = None

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def free(self) -> int:
        """Lanes that nobody uses, though some may be about to."""
        return len(self._free)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def cache_bytes(self) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self._lanes.cache))

    @staticmethod
    def job(shapes: Shapes, request: Request, context: int, where: str = "the prompt") -> Job:
        """Check a request (its prompt called `where`) against lanes of `context` ids. Raises GenerationError."""
        vocab, config = shapes.vocab, request.config
        prompt = np.asarray(request.prompt)
        check_names(vocab, config)
        checked = check_prompt(where, prompt, vocab, context, config)
        check_pictures(where, prompt, request.pictures, vocab, shapes.model)
        check_logprobs(where, request.logprobs, vocab)
        kept = request.keep and kept_ids(request.keep, vocab, config, checked.grid)
        return Job(request, checked, _contexts(prompt.astype(np.int32), checked, config, shapes), kept)

    def submit(self, job: Job) -> None:
        self._queue.append(job)

    def step(self) -> bool:
        """Take what fits, send off a block, hand out what the block before gave. False when there is nothing left to do."""
        self._drop_cancelled()
        self._take_in()
        sent = None
        if self._running:
            tells = any(job.request.logprobs is not None for job in self._running.values())
            self._lanes, progress = lanes.run_block(
                self._weights, self._lanes, self._shapes, self._block, self._visible(), tells
            )
            sent = (progress, dict(self._running))
        if self._sent is not None:
            self._hand_out(*self._sent)
        self._sent = sent
        return bool(self._running or self._queue or self._sent)

    def _visible(self) -> int:
        """Slots that no lane leaves in this block: what the host knows of lengths may be one block old."""
        longest = max(len(job.request.prompt) + sum(map(len, job.pieces)) for job in self._running.values())
        return min(_bucket(longest + 2 * self._block), self._slots)

    def _drop_cancelled(self) -> None:
        for job in [job for job in self._queue if job.cancelled]:
            self._queue.remove(job)
            self._end(job, "cancelled")
        stopped = [lane for lane, job in self._running.items() if job.cancelled]
        if stopped:
            mask = np.zeros(self.lane_count, bool)
            mask[stopped] = True
            self._lanes = lanes.stop(self._lanes, mask)

    def _take_in(self) -> None:
        new: list[tuple[int, Role, np.ndarray, Job]] = []
        while self._queue and len(self._queue[0].contexts) <= len(self._free):
            job = self._queue.popleft()
            job.places = [self._free.pop() for _ in job.contexts]
            self._running[job.places[0]] = job
            new += [(place, role, ids, job) for place, (role, ids) in zip(job.places, job.contexts, strict=True)]
        by_bucket: dict[int, list] = collections.defaultdict(list)
        for row in new:
            by_bucket[min(_bucket(max(len(row[2]) - 1, 1)), self._slots)].append(row)
        # Two sizes a bucket, since each is compiled for itself.
        shards = batch_shards(DECODING)
        group = PREFILL_GROUP + -PREFILL_GROUP % shards
        for width, rows in sorted(by_bucket.items()):
            while rows:
                size = group if len(rows) > group // 2 else shards
                self._admit(rows[:size], size, width)
                rows = rows[size:]

    def _admit(self, rows: list[tuple[int, Role, np.ndarray, Job]], size: int, width: int) -> None:
        # Rows that fill up the group go into no lane.
        rows = [*rows, *[(self.lane_count, *rows[0][1:])] * (size - len(rows))]
        places = np.array([row[0] for row in rows], np.int32)
        pictures = _pictures([(ids, job) for _, _, ids, job in rows], self._shapes.vocab)
        self._lanes = lanes.admit(self._weights, self._lanes, places, self._rows(rows), self._shapes, width, pictures)

    def _rows(self, rows: Sequence[tuple[int, Role, np.ndarray, Job]]) -> Rows:
        jobs = [job for *_, job in rows]
        leads = np.array([role == Role.LEADER for _, role, _, _ in rows])
        configs = [job.request.config for job in jobs]
        guidance = [config.guidance for config in configs]
        remaining = np.array([job.checked.remaining for job in jobs], np.int32)

        def place(job: Job, role: Role) -> int:
            found = [p for p, (r, _) in zip(job.places, job.contexts, strict=True) if r == role]
            return found[0] if found else job.places[-1]  # without earlier spans the bare context stands for both

        return lanes.make_rows(
            [ids for _, _, ids, _ in rows],
            self._slots,
            self._shapes,
            role=np.array([role for _, role, _, _ in rows], np.int32),
            leader=np.array([job.places[0] for job in jobs], np.int32),
            spans=np.array([place(job, Role.SPANS) for job in jobs], np.int32),
            bare=np.array([place(job, Role.BARE) for job in jobs], np.int32),
            scale_text=np.array([g.text if g else 1.0 for g in guidance], np.float32),
            scale_image=np.array([g.image if g else 1.0 for g in guidance], np.float32),
            sizes_unguided=np.array([_is_lumina(config) for config in configs]),
            kept=np.array([_kept(config) for config in configs], np.int32),
            grammar_state=grammar.start(
                self._shapes.vocab,
                configs,
                np.where(leads, remaining, 0),
                np.array([job.checked.opened for job in jobs], np.int32),
                np.array([job.checked.grid for job in jobs], np.int32),
                [job.kept for job in jobs],
            ),
            settings=SamplingArrays.of(configs, self._shapes.vocab),
            seeds=np.array([config.seed for config in configs]),
            row_ids=np.array([job.request.row_id for job in jobs]),
        )

    def _hand_out(self, progress: Progress, jobs: dict[int, Job]) -> None:
        seen = jax.device_get(progress)
        for lane, job in jobs.items():
            if job.ended:
                continue
            ids = seen.new[lane, : seen.length[lane] - seen.before[lane]]
            if len(ids):
                job.pieces.append(ids)
                if job.request.logprobs is None:
                    job.on_ids(ids)
                else:
                    job.logprobs.append(seen.logprobs.of_lane(lane, len(ids), job.request.logprobs))
                    job.on_ids(ids, job.logprobs[-1])
            if not seen.finite[lane]:
                self._free_lanes(job)
                job.ended = True
                job.on_end(
                    GenerationError("the model gave logits that are not finite: its weights are damaged or diverged")
                )
            elif seen.finish[lane] != FinishReason.RUNNING:
                self._free_lanes(job)
                self._end(job, "cancelled" if job.cancelled else FinishReason(int(seen.finish[lane])).name.lower())

    def _free_lanes(self, job: Job) -> None:
        del self._running[job.places[0]]
        self._free += job.places

    def _end(self, job: Job, reason: str) -> None:
        job.ended = True
        ids = np.concatenate(job.pieces) if job.pieces else np.zeros(0, np.int32)
        top = job.request.logprobs
        logprobs = None if top is None else Logprobs.join(job.logprobs, top)
        job.on_end(Generated(ids=ids, finish_reason=reason, logprobs=logprobs))


def lanes_needed(config: GenerationConfig, vocab: Vocab, has_spans: bool) -> int:
    """Lanes of a request: two where guidance compares with the bare span, three where there are other spans to keep apart."""
    written = [row for row in grammar.written_rows(vocab, config.mode) if row in vocab.marked]
    if config.guidance is None or not written:
        return 1
    most = sum(config.most_spans(vocab.names[row]) for row in written)
    return 3 if config.guidance.scheme == "meta" and (has_spans or most > 1) else 2


def _contexts(
    prompt: np.ndarray, checked: Checked, config: GenerationConfig, shapes: Shapes
) -> list[tuple[Role, np.ndarray]]:
    vocab = shapes.vocab
    in_span = np.zeros(len(prompt), bool)
    for modality in vocab.marked.values():
        in_span |= modality.counts(prompt) | (prompt == modality.begin_marker) | (prompt == modality.end_marker)
    has_spans = bool((in_span & (vocab.modality_of(prompt) != TEXT)).any())
    begun = prompt[len(prompt) - 1 - np.count_nonzero(checked.grid) :] if checked.opened != OUTSIDE else prompt[:0]
    bare = np.concatenate([np.array([vocab.bos][: _kept(config)], np.int32), begun])
    roles = [(Role.LEADER, prompt), (Role.BARE, bare), (Role.SPANS, prompt[in_span | (prompt == vocab.bos)])]
    return roles[: lanes_needed(config, vocab, has_spans)]


def _pictures(rows: Sequence[tuple[np.ndarray, Job]], vocab: Vocab) -> UInt8[np.ndarray, "b I side side 3"] | None:
    """What the contexts perceive, as many for each as a power of two; None for nothing. A bare context perceives nothing."""
    seen = [job.request.pictures if vocab.perceived and vocab.perceived.holds(ids).any() else () for ids, job in rows]
    if not any(seen):
        return None
    return stack_pictures(seen, 1 << (max(map(len, seen)) - 1).bit_length())


def _kept(config: GenerationConfig) -> int:
    """Ids before the begin marker in a bare context: bos, or nothing with Lumina-mGPT's guidance."""
    return 0 if _is_lumina(config) else 1


def _is_lumina(config: GenerationConfig) -> bool:
    return config.guidance is not None and config.guidance.scheme == "lumina"


def idle_rows(count: int, slots: int, shapes: Shapes) -> Rows:
    config = GenerationConfig()
    own, none = np.arange(count, dtype=np.int32), np.zeros(count, np.int32)
    return lanes.make_rows(
        [np.zeros(0, np.int32)] * count,
        slots,
        shapes,
        role=none,
        leader=own,
        spans=own,
        bare=own,
        scale_text=np.ones(count, np.float32),
        scale_image=np.ones(count, np.float32),
        sizes_unguided=np.zeros(count, bool),
        kept=none,
        grammar_state=grammar.start(shapes.vocab, [config] * count, none, np.full(count, OUTSIDE), None),
        settings=SamplingArrays.of([config] * count, shapes.vocab),
        seeds=none,
        row_ids=none,
    )


def _bucket(length: int) -> int:
    """The power of two, from SMALLEST_BUCKET on, that holds `length`."""
    return max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())
