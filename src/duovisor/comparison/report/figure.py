"""The three layers of one design, with this machine's processes and drivers in their places."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from duovisor.comparison.report.charts import draw_paragraph
from duovisor.comparison.report.drawing import INK, MUTED, PAPER, Drawing, Line, Rect, Text, wrap

if TYPE_CHECKING:
    from collections.abc import Iterable

    from duovisor.comparison.report.drawing import Shape
    from duovisor.comparison.report.result import Result
    from duovisor.spec.vm import Design

WIDTH = 500.0
PAD, BOX_PAD, GAP = 12.0, 10.0, 8.0
TITLE, LINE = 15.0, 12.0
WAY = 20.0
LAYERS = ("controlling", "hypervisor", "hardware")
FILLS = {"controlling": "#e6f1f5", "hypervisor": "#efe8f6", "hardware": "#f6f1e2"}
DRIVER, GOOD, WIDE = "#1f5f99", "#2b6e3f", "#a33a1d"
SPARES = "spare"
EXPLAINED = {
    "manager": "owns VMs: here this comparison, in daily use duovisord",
    "vmm": "runs the guest: its processors, its memory",
}


def draw_figure(result: Result, design: Design) -> Drawing | None:
    """The figure of one design; None when its processes were not looked at."""
    facts = result.authority.get(design)
    if not facts:
        return None
    shapes: list[Shape] = [Text(PAD, 22, f"{str(design).capitalize()} design", 17, bold=True)]
    y = 34.0
    for layer in LAYERS:
        y = _draw_layer(shapes, layer, _boxes_of(layer, facts, result), y, _find_way(layer, facts))
    told = "; ".join(
        f"{process['layer']} layer: {process['role']}"
        + (f" with drivers {', '.join(process['drivers'])}" if process["drivers"] else "")
        for process in facts["processes"]
    )
    return Drawing(f"layers-{design}", f"{design} design: the three layers", told, WIDTH, y, tuple(shapes))


Box = tuple[str, list[tuple[str, str]]]


def _find_way(layer: str, facts: dict[str, Any]) -> str:
    """What leads from a layer to the one below it."""
    if layer == LAYERS[0]:
        outside = any(each["drivers"] for each in facts["processes"] if each["layer"] == layer)
        return (
            "the channel: requests in the guest's memory, shared"
            if outside
            else "commands alone: start, stop, …"
        )
    return "system calls" if layer == LAYERS[1] else ""


def _boxes_of(layer: str, facts: dict[str, Any], result: Result) -> list[Box]:
    if layer == "hardware":
        processors = f"{result.header.host.processor}, {result.header.host.cpus} CPUs"
        return [
            ("processors", [(f"{processors}; guests on {facts['accelerator'].upper()}", MUTED)]),
            ("disks and network cards", [("their drivers are in the host's kernel, in both designs", MUTED)]),
        ]
    processes = [process for process in facts["processes"] if process["layer"] == layer]
    return [_build_box(role, drivers, each) for (role, drivers), each in join_spares(processes).items()]


def join_spares(
    processes: Iterable[dict[str, Any]],
) -> dict[tuple[str, tuple[str, ...]], list[dict[str, Any]]]:
    """Role and drivers → the process, and its spare if it has one."""
    joined: dict[tuple[str, tuple[str, ...]], list[dict[str, Any]]] = {}
    for process in processes:
        joined.setdefault((process["role"], tuple(process["drivers"])), []).append(process)
    return joined


def _build_box(role: str, drivers: tuple[str, ...], processes: list[dict[str, Any]]) -> Box:
    """One process, or a driver with its spare."""
    pids = " and a spare, ".join(str(process["pid"]) for process in processes)
    title = f"{role.upper() if role == 'vmm' else role}  {pids}"
    lines = [(EXPLAINED[role], MUTED)] if role in EXPLAINED else []
    if drivers:
        lines.append((f"drivers inside: {', '.join(drivers)}", DRIVER))
    elif role == "vmm":
        lines.append(("no device driver inside", GOOD))
    if role != "manager":
        lines += _describe_access(processes[0])
    return title, lines


def _describe_access(process: dict[str, Any]) -> list[tuple[str, str]]:
    wide = [access for access in process["host_access"] if access.startswith("host ")]
    held = [shorten_access(access) for access in process["host_access"] if not access.startswith("host ")]
    lines = [(f"holds {', '.join(held) if held else 'nothing of the host'}", INK)]
    lines.append((f"can reach {', '.join(wide)}", WIDE) if wide else ("can reach nothing else", GOOD))
    authority = process.get("authority") or {}
    if authority:
        confined = [f"uid {authority['uid']}", f"{authority['capabilities'] or 'no'} capabilities"]
        confined.append("system call filter" if authority["seccomp_filters"] else "no system call filter")
        lines.append((", ".join(confined), MUTED))
    return lines


def shorten_access(access: str) -> str:
    """What a process holds; images by their file's name alone."""
    kind, _, rest = access.partition(" ")
    if kind != "image":
        return access
    path, _, mode = rest.rpartition(" (")
    return f"image {path.rsplit('/', 1)[-1]} ({mode}"


def _draw_layer(shapes: list[Shape], layer: str, boxes: list[Box], top: float, way: str) -> float:
    inner = WIDTH - 2 * PAD
    heights = [_measure_box(box, inner - 2 * BOX_PAD) for box in boxes]
    height = 26 + sum(heights) + GAP * len(boxes) + 4
    shapes.append(Rect(0, top, WIDTH, height, FILLS[layer], "#c9d1d8"))
    shapes.append(Text(PAD, top + 18, f"{layer} layer".upper(), 11.5, bold=True, fill=MUTED))
    y = top + 26
    for box, box_height in zip(boxes, heights, strict=True):
        _draw_box(shapes, box, y, box_height)
        y += box_height + GAP
    if not way:
        return top + height + 2
    bottom = top + height
    shapes.append(Line(PAD + 24, bottom, PAD + 24, bottom + WAY, MUTED, 2))
    shapes.append(Text(PAD + 34, bottom + WAY - 6, way, 11.5, fill=MUTED))
    return bottom + WAY


def _measure_box(box: Box, width: float) -> float:
    title, lines = box
    rows = sum(len(wrap(text, LINE, width)) for text, _ in lines)
    return 8 + TITLE * 1.3 * len(wrap(title, TITLE, width)) + LINE * 1.3 * rows + 4


def _draw_box(shapes: list[Shape], box: Box, y: float, height: float) -> None:
    title, lines = box
    width = WIDTH - 2 * PAD
    shapes.append(Rect(PAD, y, width, height, PAPER, "#9aa7b3", 4))
    at = y + 20
    for line in wrap(title, TITLE, width - 2 * BOX_PAD):
        shapes.append(Text(PAD + BOX_PAD, at, line, 14, bold=True))
        at += TITLE * 1.3
    for text, fill in lines:
        drawn = draw_paragraph(text, PAD + BOX_PAD, at, width - 2 * BOX_PAD, LINE, fill)
        shapes += drawn
        at += len(drawn) * LINE * 1.3
