"""The figures of ``others.py`` as the tables of docs/performance.md; pure."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

TITLES = {"storage": "Storage", "network": "Network", "libvirt": "Start, stop and memory"}
NAMES = {
    "qemu": "QEMU by hand",
    "qsd_vhost_user": "`qemu-storage-daemon`, vhost-user-blk",
    "qsd_nbd": "`qemu-storage-daemon`, NBD",
    "qemu_tap": "QEMU by hand, TAP",
    "qemu_user": "QEMU's user network",
}
UNITS = {
    "read_1m_qd4": "MiB/s",
    **dict.fromkeys(("round_trip", "start", "stop"), "ms"),
    **dict.fromkeys(("read_4k_qd1", "read_4k_qd32", "randwrite_4k_qd32"), "IOPS"),
    **dict.fromkeys(("to_guest", "from_guest", "to_guest_4", "from_guest_4"), "Mbit/s"),
}
LOWER_IS_BETTER = {"round_trip", "start", "stop"}
Spread = tuple[float, float, float]


def build_markdown(document: dict[str, Any]) -> str:
    """Every part that was measured: ratios with their spread, figures, and who lost."""
    parts = [
        f"{document['rounds']} rounds of {document['seconds']:g} s a job on {document['machine']}; load "
        f"{document['load_before']} before, {document['load_after']} after. A ratio is the median of the "
        "rounds' [least … most]."
    ]
    for part, title in TITLES.items():
        if part in document:
            parts += [f"**{title}**", *_build_part(document[part])]
    parts += [f"Not measured: {part}, for {why}." for part, why in document["missing"].items()]
    return "\n\n".join(parts) + "\n"


def _build_part(part: dict[str, Any]) -> list[str]:
    ratios: dict[str, dict[str, Spread]] = part["ratio"]
    figures: dict[str, dict[str, list[float]]] = part["figures"]
    who = list(next(iter(figures.values())))
    blocks = [
        _table(
            ["ratio", *map(_name_pair, ratios)],
            [[job, *(_tell(each.get(job)) for each in ratios.values())] for job in figures],
        ),
        _table(
            ["median", *map(_name, who)],
            [[_name_figure(job), *(_tell_median(figures[job][each]) for each in who)] for job in figures],
        ),
        _tell_losses(ratios),
    ]
    if memory := part.get("service_pss_mib"):
        told = ", ".join(f"{name} {mib:g}" for name, mib in memory.items())
        blocks.append(f"Memory of the service itself (PSS, MiB): {told}.")
    return blocks


def _name_figure(job: str) -> str:
    return f"{job}, {UNITS[job]}" if job in UNITS else job


def _tell_losses(ratios: dict[str, dict[str, Spread]]) -> str:
    """Where ours is worse in every round, and by how much in the middle of them."""
    lost = []
    for pair, jobs in ratios.items():
        for job, (median, least, most) in jobs.items():
            if job in LOWER_IS_BETTER and least > 1:
                lost.append(f"{job}, {_name_pair(pair)}: {(median - 1) * 100:.0f} % more")
            elif job not in LOWER_IS_BETTER and most < 1:
                lost.append(f"{job}, {_name_pair(pair)}: {(1 - median) * 100:.0f} % less")
    return f"Lost in every round: {'; '.join(lost) or 'nothing'}."


def _name(who: str) -> str:
    return NAMES.get(who, who)


def _name_pair(pair: str) -> str:
    return " ÷ ".join(map(_name, pair.split(" ÷ ")))


def _tell(spread: Spread | None) -> str:
    return "–" if spread is None else f"{spread[0]:.2f} [{spread[1]:.2f} … {spread[2]:.2f}]"


def _tell_median(values: Sequence[float]) -> str:
    if not values:
        return "–"
    median = statistics.median(values)
    return f"{median:,.0f}" if median >= 10 else f"{median:.2f}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
