"""Prometheus metrics. Requests are counted as they pass, gauges read when they are scraped. HTTP process."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from server.chat.deltas import Event, TextDelta, Usage
from server.errors import ConfigiError
from server.models.resident import Resident
from server.models.status import STATES

_TTFT_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 40, 80, 160)
# Of `Stats`, by the names of its fields; zero for a model that is not in memory.
_ENGINE_GAUGES = {
    "running": "Sequences that hold a slot.",
    "waiting": "Sequences that wait for a slot.",
    "kv_bytes": "Bytes of KV cache in use.",
    "prefix_bytes": "Bytes of memory that kept prefixes hold.",
    "active_bytes": "Bytes that MLX holds.",
    "peak_bytes": "Most bytes that MLX has held.",
}
_DURATION_BUCKETS = (0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640)


class Metrics:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        r = self._registry
        self._requests = Counter("configi_requests", "Generations by outcome.", ["model", "outcome"], registry=r)
        self._again = Counter(
            "configi_requests_asked_again",
            "Generations that waited in an engine that ended, and were asked of the next one.",
            ["model"],
            registry=r,
        )
        self._tokens = Counter("configi_tokens", "Tokens by kind.", ["model", "kind"], registry=r)
        self._answers = Counter(
            "configi_client_requests", "Answers to clients with a key of their own.", ["client", "status"], registry=r
        )
        self._ttft = Histogram(
            "configi_ttft_seconds", "Request to first text.", ["model"], buckets=_TTFT_BUCKETS, registry=r
        )
        self._duration = Histogram(
            "configi_duration_seconds", "Request to end.", ["model"], buckets=_DURATION_BUCKETS, registry=r
        )

    @contextlib.contextmanager
    def request(self, model: str) -> Iterator[Measured]:
        """Counts one generation: completed, or the code of its error, or cancelled when its client left."""
        measured = Measured(self, model)
        outcome = "completed"
        try:
            yield measured
        except ConfigiError as error:
            outcome = error.code or error.type
            raise
        except (asyncio.CancelledError, GeneratorExit):
            outcome = "cancelled"
            raise
        except BaseException:
            # A panic of native code is no Exception.
            outcome = "internal"
            raise
        finally:
            self._requests.labels(model, outcome).inc()
            self._duration.labels(model).observe(time.monotonic() - measured.start)

    def answered(self, client: str, status: int) -> None:
        """A request of a named client has ended; 0 when the client left before there was a status."""
        self._answers.labels(client, f"{status // 100}xx" if status else "none").inc()

    def first_text(self, model: str, seconds: float) -> None:
        self._ttft.labels(model).observe(seconds)

    def asked_again(self, model: str) -> None:
        self._again.labels(model).inc()

    def usage(self, model: str, usage: Usage) -> None:
        self._tokens.labels(model, "prompt").inc(usage.prompt_tokens)
        self._tokens.labels(model, "cached").inc(usage.cached_tokens)
        self._tokens.labels(model, "completion").inc(usage.completion_tokens)

    def render(self, models: Collection[Resident]) -> bytes:
        """All metrics in the text exposition format."""
        state = CollectorRegistry()
        state.register(_Fixed(list(_gauges(models))))
        return generate_latest(self._registry) + generate_latest(state)


class Measured:
    """One generation on its way through."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics = metrics
        self._model = model
        self._waiting_for_text = True
        self.start = time.monotonic()

    def asked_again(self) -> None:
        self._metrics.asked_again(self._model)

    def event(self, event: Event) -> None:
        if self._waiting_for_text and isinstance(event, TextDelta):
            self._waiting_for_text = False
            self._metrics.first_text(self._model, time.monotonic() - self.start)
        elif isinstance(event, Usage):
            self._metrics.usage(self._model, event)


class _Fixed:
    """A collector of metrics that exist already."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _gauges(models: Collection[Resident]) -> Iterator[Metric]:
    states = GaugeMetricFamily("configi_model_state", "1 for the state a model is in.", labels=["model", "state"])
    starts = CounterMetricFamily("configi_engine_starts", "Engine processes started.", labels=["model"])
    for model in models:
        starts.add_metric([model.entry.id], model.engine_starts)
        for state in STATES:
            states.add_metric([model.entry.id, state], float(model.status.state == state))
    yield states
    yield starts
    for name, text in _ENGINE_GAUGES.items():
        gauge = GaugeMetricFamily(f"configi_engine_{name}", text, labels=["model"])
        for model in models:
            stats = model.engine.stats if model.engine is not None else None
            gauge.add_metric([model.entry.id], float(getattr(stats, name, 0)))
        yield gauge
