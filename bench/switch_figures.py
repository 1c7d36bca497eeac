"""What the switch benchmark found, as a document and as a person reads it."""

from __future__ import annotations

import os
import statistics
from typing import TYPE_CHECKING, Any

from bench.driver_pauses import summarize

from duovisor.controlling.moving.report import Step
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from duovisor.controlling.moving.report import MoveReport

GOAL_MS = 20.0


def summarize_reports(reports: list[MoveReport]) -> dict[str, Any]:
    """What the mover itself says of its switches."""
    return {
        "switches": len(reports),
        "pause_ms": summarize([report.pause_ms for report in reports]),
        "total_ms": summarize([report.total_ms for report in reports]),
        "stream_bytes": max((report.stream_bytes for report in reports), default=0),
        "step_ms": _find_step_medians(reports),
    }


def _find_step_medians(reports: list[MoveReport]) -> dict[str, dict[str, float]]:
    """Each step's median, by the design that the guest goes to."""
    found: dict[str, dict[str, float]] = {}
    for design in Design:
        chosen = [report for report in reports if report.new_design is design]
        steps = {step for report in chosen for step in report.step_ms}
        found[design] = {
            step.name.lower(): round(statistics.median(report.step_ms[step] for report in chosen), 2)
            for step in Step
            if step in steps
        }
    return found


def build_document(counted: dict[int, dict[str, Any]], loaded: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """The figures of all guests together, and of each by its memory."""
    stops = {memory: figures.pop("stops_ms") for memory, figures in counted.items()}
    every = [*counted.values(), *loaded.values()]
    return {
        "switches": sum(figures["switches"] for figures in every),
        "errors": sum(sum(figures["errors"].values()) for figures in every),
        "downtime_ms": summarize([stop for each in stops.values() for stop in each]),
        "load": round(os.getloadavg()[1], 1),
        "by_memory": {
            memory: {
                "downtime_ms": summarize(stops[memory]),
                "counting_guest": counted[memory],
                "loaded_guest": loaded[memory],
            }
            for memory in counted
        },
    }


def print_figures(document: dict[str, Any]) -> None:
    """The figures as a person reads them."""
    print(f"{document['switches']} switches, {document['errors']} errors, load {document['load']}")
    p50 = document["downtime_ms"]["p50"]
    print(f"downtime p50 {p50:.1f} ms   {'met' if p50 <= GOAL_MS else 'missed'}: goal ≤ {GOAL_MS:g}")
    for memory, figures in document["by_memory"].items():
        counting, loaded = figures["counting_guest"], figures["loaded_guest"]
        print(f"\n{memory} MiB")
        for name, values in (
            ("downtime", figures["downtime_ms"]),
            ("noise", counting["noise_ms"]),
            ("lag of the guest's clock", loaded["clock_lag_ms"]),
            ("pause, says the mover", loaded["pause_ms"]),
            ("open question", loaded["answer_ms"]),
            ("noise", loaded["answer_noise_ms"]),
            ("all of a switch", loaded["total_ms"]),
        ):
            print(f"  {name:25} " + "  ".join(f"{key} {value:7.1f}" for key, value in values.items()))
        for design, steps in loaded["step_ms"].items():
            print(f"  to {design}: " + ", ".join(f"{name} {value:g}" for name, value in steps.items()))
        for name in ("errors", "grown"):
            print(f"  {name}: " + ", ".join(f"{key} {value}" for key, value in loaded[name].items()))
