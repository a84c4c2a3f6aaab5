"""The engine as a service: requests from threads, slots used again, cancelling, failing, closing."""

import asyncio
import threading

import jax
import numpy as np
import pytest

from chameleon_jax.configs import EngineConfig, GenerationConfig, GuidanceConfig, MeshConfig, SamplingConfig
from chameleon_jax.errors import GenerationError
from chameleon_jax.generation import lanes, scheduler
from chameleon_jax.generation.engine import Engine, generate
from chameleon_jax.generation.requests import QueueFull, Request
from chameleon_jax.models.quantize import Int8Matrix, quantize_parameter
from chameleon_jax.models.transformer import param_specs
from chameleon_jax.parallel.mesh import make_mesh
from tests.generation.test_guidance import CONTEXT, FIXED, model_of, weights_of

MODEL, VOCAB = model_of(FIXED), FIXED
RANDOM = SamplingConfig(temperature=1.0, top_p=0.9)
BOTH = {"text": RANDOM, "image": RANDOM}
CONFIG = EngineConfig(slots=4, block=4, max_queued=64)


def request(seed=0, mode="interleaved", length=3, guided=False, **changes):
    random = np.random.default_rng(seed)
    prompt = np.array([VOCAB.bos, *random.integers(VOCAB.text.start, VOCAB.text.stop, length)])
    guidance = GuidanceConfig(text=2.0) if guided else None
    settings = {"max_tokens": 20, "max_spans": {"image": 2}} | changes
    config = GenerationConfig(mode=mode, sampling=BOTH, seed=seed, guidance=guidance, **settings)
    return Request(prompt=prompt, config=config)


MODES = ("text", "image", "interleaved", "unrestricted")
MIXED = [request(seed, mode=MODES[seed % 4], length=1 + 3 * seed % 11, guided=seed % 4 in (1, 2)) for seed in range(12)]


@pytest.fixture(scope="module")
def engine():
    with Engine(weights_of(VOCAB), MODEL, VOCAB, CONFIG) as engine:
        yield engine


@pytest.fixture(scope="module")
def alone(engine):
    """What each request gives with the engine to itself."""
    return [engine.stream(request).result() for request in MIXED]


def test_what_streams_is_what_results(engine):
    stream = engine.stream(MIXED[2])
    pieces = list(stream)
    assert len(pieces) > 1 and all(1 <= len(piece) <= CONFIG.block for piece in pieces)
    assert np.concatenate(pieces).tolist() == stream.result().ids.tolist()
    assert list(stream) == []


class Caller:
    """Callbacks that keep what they are told, and raise `error` at ids and at the end if it is given."""

    def __init__(self, error=None):
        self.error, self.pieces, self.ends, self.threads = error, [], [], set()
        self.ended = threading.Event()

    def on_ids(self, ids):
        assert not self.ends
        self.pieces.append(ids)
        self.threads.add(threading.current_thread().name)
        if self.error:
            raise self.error

    def on_end(self, result):
        self.ends.append(result)
        self.threads.add(threading.current_thread().name)
        self.ended.set()
        if self.error:
            raise self.error

    def submit(self, engine, request):
        self.handle = engine.submit(request, self.on_ids, self.on_end)
        return self


def test_callbacks_get_every_id_and_one_end_from_the_engines_thread(engine, alone):
    callers = [Caller().submit(engine, request) for request in MIXED]
    for caller, expected in zip(callers, alone, strict=True):
        assert caller.ended.wait(60)
        [end] = caller.ends
        assert np.concatenate(caller.pieces).tolist() == end.ids.tolist() == expected.ids.tolist()
        assert end.finish_reason == expected.finish_reason and caller.threads == {"engine"}
        caller.handle.cancel()  # no effect after the end
    assert all(len(caller.ends) == 1 for caller in callers)


def test_a_handle_cancels(engine):
    def cancel_at_once(ids):
        pieces.append(ids)
        handles[0].cancel()

    pieces, handles, ended = [], [], threading.Event()
    results = []
    long = request(99, mode="text", max_tokens=40)
    waiting = [Caller().submit(engine, long) for _ in range(CONFIG.slots + 1)]  # until the handle is there
    handles.append(engine.submit(long, cancel_at_once, lambda result: (results.append(result), ended.set())))
    assert ended.wait(60) and all(caller.ended.wait(60) for caller in waiting)
    assert results[0].finish_reason == "cancelled" and len(results[0].ids) < 40
    assert np.concatenate(pieces).tolist() == results[0].ids.tolist()


@pytest.mark.parametrize("error", [ValueError("no loop"), SystemExit(3), asyncio.CancelledError()], ids=type)
def test_callbacks_that_fail_cost_their_own_request_alone(engine, alone, error, caplog):
    failing = [Caller(error).submit(engine, request) for request in MIXED[:6]]
    streams = [engine.stream(request) for request in MIXED]
    assert [stream.result().ids.tolist() for stream in streams] == [a.ids.tolist() for a in alone]
    for caller in failing:
        assert caller.ended.wait(60) and len(caller.pieces) == len(caller.ends) == 1
        [told] = caller.ends
        assert isinstance(told, GenerationError) and told.__cause__ is error
        assert str(told).startswith(f"on_ids of the request failed: {type(error).__name__}")
    assert caplog.text.count("a request is cancelled: its on_ids failed") == 6
    assert caplog.text.count("on_end of a request failed") == 6
    stats = engine.stats()
    assert (stats.failed, stats.running, stats.queued) == (None, 0, 0)


def test_a_callback_may_submit_the_next_request(engine, alone):
    def submit_second(result):
        chained.append(Caller().submit(engine, MIXED[1]))
        submitted.set()

    chained, submitted = [], threading.Event()
    engine.submit(MIXED[0], lambda ids: None, submit_second)
    assert submitted.wait(60) and chained[0].ended.wait(60)
    assert chained[0].ends[0].ids.tolist() == alone[1].ids.tolist()


def test_requests_together_in_slots_used_again_get_what_they_get_alone(engine, alone):
    streams = [engine.stream(request) for request in MIXED]
    results = [stream.result() for stream in streams]
    assert [r.ids.tolist() for r in results] == [a.ids.tolist() for a in alone]
    assert [r.finish_reason for r in results] == [a.finish_reason for a in alone]
    stats = engine.stats()
    assert (stats.slots, stats.running, stats.queued) == (4, 0, 0)
    assert stats.cache_bytes == 2 * MODEL.n_layers * 4 * CONTEXT * MODEL.n_kv_heads * MODEL.head_dim * 4


def test_cancelling_in_the_middle_leaves_the_others_as_they_are(engine, alone):
    long = request(99, mode="text", max_tokens=40)
    first = [engine.stream(long) for _ in range(3)]
    streams = [engine.stream(request) for request in MIXED]
    for stream in first:
        next(iter(stream))
        stream.cancel()
    assert [stream.result().ids.tolist() for stream in streams] == [a.ids.tolist() for a in alone]
    for stream in first:
        result = stream.result()
        assert result.finish_reason == "cancelled" and len(result.ids) < 40
        stream.cancel()  # no harm when it has ended


def test_many_threads_may_submit(engine, alone):
    found = {}

    def ask(i):
        found[i] = engine.stream(MIXED[i % 12]).result().ids.tolist()

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[i] == alone[i % 12].ids.tolist() for i in range(24))


def test_a_service_gives_the_ids_of_a_batch(engine, alone):
    for request, expected in zip(MIXED[:4], alone, strict=False):
        [output] = generate(weights_of(VOCAB), MODEL, VOCAB, [request.prompt], request.config, row_ids=[request.row_id])
        assert output.ids.tolist() == expected.ids.tolist()


def test_a_queue_has_an_end():
    with Engine(weights_of(VOCAB), MODEL, VOCAB, EngineConfig(slots=1, block=1, max_queued=2)) as small:
        streams = [small.stream(request(1, mode="text", max_tokens=40))]
        with pytest.raises(QueueFull, match="requests wait already; 2 are the most") as refused:
            for _ in range(8):
                streams.append(small.stream(request(2, mode="text")))
        assert refused.value.retry_after > 0
        assert all(len(stream.result().ids) for stream in streams)


def test_bad_requests_are_refused_at_once_and_cost_nothing(engine, alone):
    with pytest.raises(GenerationError, match="the prompt is empty"):
        engine.stream(Request(prompt=np.array([], int), config=GenerationConfig()))
    with pytest.raises(GenerationError, match=f"context of {CONTEXT} leaves no room"):
        engine.stream(Request(prompt=np.full(CONTEXT, VOCAB.bos), config=GenerationConfig()))
    assert engine.stream(MIXED[0]).result().ids.tolist() == alone[0].ids.tolist()
    with (
        Engine(weights_of(VOCAB), MODEL, VOCAB, EngineConfig(slots=2)) as small,
        pytest.raises(GenerationError, match="needs 3 slots, the engine has 2"),
    ):
        small.stream(request(guided=True))


@pytest.mark.parametrize("drain", [True, False])
def test_closing_drains_or_stops(drain):
    service = Engine(weights_of(VOCAB), MODEL, VOCAB, EngineConfig(slots=1, block=1, max_queued=9))
    streams = [service.stream(request(i, mode="text", max_tokens=30)) for i in range(3)]
    next(iter(streams[0]))
    service.close(drain=drain)
    reasons = [stream.result().finish_reason for stream in streams]
    assert reasons == [r if drain else "cancelled" for r in reasons] and ("cancelled" not in reasons) == drain
    with pytest.raises(GenerationError, match="closing"):
        service.stream(request())


def test_a_failing_engine_tells_everybody(monkeypatch):
    service, submitted = Engine(weights_of(VOCAB), MODEL, VOCAB, EngineConfig(slots=1, block=2)), threading.Event()
    monkeypatch.setattr(lanes, "run_block", lambda *args: submitted.wait(60) and 1 / 0)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    callers = [Caller(error).submit(service, request()) for error in (None, ValueError("as I end"), None)]
    stream = service.stream(request())
    submitted.set()
    with pytest.raises(GenerationError, match="the engine has failed: ZeroDivisionError"):
        stream.result()
    told = [str(end) for caller in callers for end in caller.ends]
    assert told == ["the engine has failed: ZeroDivisionError: division by zero"] * 3
    with pytest.raises(GenerationError, match="the engine has failed"):
        service.stream(request())


def test_a_block_asks_the_host_for_nothing():
    """With every transfer forbidden, a block of guided and plain requests runs to its end."""
    shapes = lanes.Shapes(model=MODEL, vocab=VOCAB)
    running = scheduler.Scheduler(weights_of(VOCAB), shapes, count=4, slots=CONTEXT, block=8)
    for asked in MIXED[:2]:
        running.submit(scheduler.Scheduler.job(shapes, asked, CONTEXT))
    running.step()
    before = np.asarray(running._lanes.rows.length)
    with jax.transfer_guard("disallow"):
        state, progress = lanes.run_block(weights_of(VOCAB), running._lanes, shapes, 8, CONTEXT)
        jax.block_until_ready((state, progress))
    assert (np.asarray(progress.length) - before).max() == 8


def test_a_block_is_compiled_once_a_bucket_and_a_prefill_twice(engine):
    """Prefills of two widths come in two group sizes each; blocks look at two numbers of slots."""
    lanes.admit.clear_cache()
    lanes.run_block.clear_cache()
    with Engine(weights_of(VOCAB), MODEL, VOCAB, CONFIG) as fresh:
        for asked in [*MIXED, *MIXED]:
            fresh.stream(asked)
    buckets = {32, CONTEXT}
    assert lanes.admit._cache_size() <= 2 * len(buckets)
    assert lanes.run_block._cache_size() <= len(buckets)


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
def test_four_devices_give_the_same(alone):
    mesh = make_mesh(MeshConfig(data=2, fsdp=1, tensor=2), jax.devices()[:4])
    greedy = SamplingConfig(temperature=0.0)
    config = GenerationConfig(
        mode="image",
        max_spans={"image": 2},
        max_tokens=20,
        sampling={"text": greedy, "image": greedy},
        guidance=GuidanceConfig(),
    )
    prompts = [asked.prompt for asked in MIXED[:3]]
    expected = generate(weights_of(VOCAB), MODEL, VOCAB, prompts, config)
    with Engine(weights_of(VOCAB), MODEL, VOCAB, EngineConfig(slots=6, block=5), mesh=mesh) as service:
        streams = [service.stream(Request(prompt=prompt, config=config)) for prompt in prompts]
        results = [stream.result() for stream in streams]
    assert [r.ids.tolist() for r in results] == [e.ids.tolist() for e in expected]


def test_eight_bits_are_near_and_a_quarter():
    weights = weights_of(VOCAB)
    narrow = jax.tree.map(quantize_parameter, weights, param_specs(MODEL))
    wide = dict(jax.tree.leaves_with_path(weights))
    for path, leaf in jax.tree.leaves_with_path(narrow, is_leaf=lambda leaf: isinstance(leaf, Int8Matrix)):
        if isinstance(leaf, Int8Matrix):
            inputs = leaf.values.ndim - leaf.scale.ndim
            axes = tuple(
                range(
                    leaf.values.ndim - leaf.scale.ndim + (path[0].key == "layers") - inputs,
                    inputs + (path[0].key == "layers"),
                )
            )
            scale = np.expand_dims(np.asarray(leaf.scale), axes)
            error = np.abs(np.asarray(leaf.values) * scale - np.asarray(wide[path]))
            assert (error <= scale / 2 * 1.0001).all()
    with Engine(weights, MODEL, VOCAB, EngineConfig(slots=2, weights="int8")) as service:
        output = service.stream(request(mode="image")).result()
    assert output.finish_reason == "spans" and len(output.ids) == 12


def test_a_row_whose_logits_are_no_numbers_stops_and_its_lane_is_free_for_the_next():
    shapes, weights = lanes.Shapes(model=MODEL, vocab=VOCAB), weights_of(VOCAB)
    damaged = weights | {"head": weights["head"].at[0, 0].set(np.nan)}
    running = scheduler.Scheduler(damaged, shapes, count=1, slots=CONTEXT, block=8)
    told = []
    for _ in range(2):
        job = scheduler.Scheduler.job(shapes, MIXED[0], CONTEXT)
        job.on_end = told.append
        running.submit(job)
    while running.step():
        pass
    assert [type(error) for error in told] == [GenerationError] * 2
    assert int(running._lanes.rows.length[0]) == len(MIXED[0].prompt) + 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # it is what this is about
def test_an_engine_that_fails_says_so():
    service = Engine(weights_of(VOCAB), MODEL, VOCAB, EngineConfig(slots=1, block=2))

    def fail():
        raise RuntimeError("out of memory")

    service._scheduler.step = fail
    with pytest.raises(GenerationError, match="the engine has failed: RuntimeError: out of memory"):
        service.stream(MIXED[0]).result()
    service._thread.join()
    assert service.stats().failed == "RuntimeError: out of memory"
    with pytest.raises(GenerationError, match="out of memory"):
        service.stream(MIXED[0])
