"""Numbers for Prometheus: what the engine says of itself, and what the server has answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from chameleon_jax.generation.requests import EngineStats

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """One registry a server, so that two servers of one process do not share numbers."""

    def __init__(self):
        self.registry = CollectorRegistry()
        self.responses = Counter(
            "chameleon_responses", "Answers by path and status.", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "chameleon_request_seconds",
            "From a request's first byte to its answer's last.",
            ["path"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.first_token = Histogram(
            "chameleon_first_token_seconds",
            "From the submission of a request to its first ids.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.disconnects = Counter("chameleon_disconnects", "Clients that left early.", registry=self.registry)
        self.spans = Counter(
            "chameleon_spans",
            "Pictures and other data written, previews not counted.",
            ["modality"],
            registry=self.registry,
        )
        self.open = Gauge("chameleon_open_requests", "Generating requests in hand.", registry=self.registry)
        self._engines = _EngineCollector()
        self.registry.register(self._engines)

    def watch(self, model: str, stats: Callable[[], EngineStats]) -> None:
        """Tell the numbers of this model's engine too."""
        self._engines.stats[model] = stats

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _EngineCollector:
    def __init__(self):
        self.stats: dict[str, Callable[[], EngineStats]] = {}

    def collect(self) -> Iterator[Metric]:
        found = {model: stats() for model, stats in self.stats.items()}
        gauges = {
            "slots": "Requests that can run at one time.",
            "running": "Requests that run.",
            "queued": "Requests that wait for a slot.",
            "tokens_per_second": "Ids a second over the last few seconds.",
            "cache_bytes": "Size of the key-value cache.",
        }
        counters = {
            "requests": ("engine_requests", "Requests taken by the engine."),
            "tokens": ("tokens", "Ids generated."),
        }
        families = {
            name: GaugeMetricFamily(f"chameleon_{name}", text, labels=["model"]) for name, text in gauges.items()
        }
        for name, (told, text) in counters.items():
            families[name] = CounterMetricFamily(f"chameleon_{told}", text, labels=["model"])
        for name, family in families.items():
            for model, stats in found.items():
                family.add_metric([model], getattr(stats, name))
            yield family
