"""Counts of requests, and the text that Prometheus reads.

Source: prometheus.io/docs/instrumenting/exposition_formats (text format, version 0.0.4).
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS_S = (0.005, 0.02, 0.1, 0.5, 2.0)


class RequestKey(NamedTuple):
    """What requests are counted by; ``route`` is the pattern, never the path, so that it stays short."""

    method: str
    route: str
    status: int


class Metric(NamedTuple):
    """One family: a name, a type, a line of help, and its samples (suffix, labels, value)."""

    name: str
    kind: str
    help: str
    samples: Iterable[Sample]


class Sample(NamedTuple):
    """One number."""

    labels: Mapping[str, str]
    value: float
    suffix: str = ""


class RequestCounts:
    """How many requests there were and how long they took."""

    def __init__(self) -> None:
        self._buckets: dict[RequestKey, list[int]] = defaultdict(lambda: [0] * (len(BUCKETS_S) + 1))
        self._seconds: dict[RequestKey, float] = defaultdict(float)

    def observe(self, key: RequestKey, duration_s: float) -> None:
        """Count one request."""
        place = next((i for i, bound in enumerate(BUCKETS_S) if duration_s <= bound), len(BUCKETS_S))
        self._buckets[key][place] += 1
        self._seconds[key] += duration_s

    def metric(self) -> Metric:
        """The counts as a histogram."""
        return Metric(
            "duovisor_http_request_duration_seconds", "histogram", "Requests by route and status.",
            list(self._samples()),
        )  # fmt: skip

    def _samples(self) -> Iterator[Sample]:
        for key, buckets in sorted(self._buckets.items()):
            labels = {"method": key.method, "route": key.route, "status": str(key.status)}
            total = 0
            for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), buckets, strict=True):
                total += count
                yield Sample({**labels, "le": bound}, total, "_bucket")
            yield Sample(labels, total, "_count")
            yield Sample(labels, self._seconds[key], "_sum")


def build_text(metrics: Iterable[Metric]) -> str:
    """The text format of some metrics."""
    lines = []
    for metric in metrics:
        lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
        lines += [_line(metric.name, sample) for sample in metric.samples]
    return "\n".join([*lines, ""])


def _line(name: str, sample: Sample) -> str:
    labels = ",".join(f'{label}="{_escape(value)}"' for label, value in sample.labels.items())
    return (
        f"{name}{sample.suffix}{{{labels}}} {sample.value:.10g}"
        if labels
        else (f"{name}{sample.suffix} {sample.value:.10g}")
    )


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
