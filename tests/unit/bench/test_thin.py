"""What the thin VMM's benchmark makes of what it has measured."""

from __future__ import annotations

import pytest
from bench.thin import GOALS, build_lines, count_code_lines, count_lines, list_module_files, summarize


def measured(start_s: float, boot_s: float, memory_mib: float) -> dict[str, float]:
    return {"start_s": start_s, "boot_s": boot_s, "memory_mib": memory_mib}


def test_figures_are_ratios_of_medians() -> None:
    rounds = [
        {"qemu": measured(1.0, 4.0, 50.0), "thin": {**measured(0.5, 3.0, 15.0), "exits_per_1000_io": 0.0}},
        {"qemu": measured(2.0, 4.0, 50.0), "thin": {**measured(0.5, 2.0, 15.0), "exits_per_1000_io": 0.0}},
        {"qemu": measured(9.0, 4.0, 50.0), "thin": {**measured(9.0, 1.0, 99.0), "exits_per_1000_io": 4.0}},
    ]
    assert summarize(rounds) == pytest.approx(
        {
            "start_ratio": 0.25,
            "boot_ratio": 0.5,
            "memory_mib": 15,
            "memory_ratio": 0.3,
            "exits_per_1000_io": 0,
        }
    )


def test_each_figure_stands_beside_its_goal() -> None:
    met, missed = build_lines({"boot_ratio": 0.7, "lines": 4001})
    assert met.split() == "boot_ratio 0.700 goal ≤ 0.7: met".split()
    assert missed.endswith("goal ≤ 4000: missed")


def test_lines_of_code_are_counted() -> None:
    text = (
        '"""What it is.\n\nAnd why.\n"""\n\nNAME = (\n    1,  # one\n)\n# why\n\n\n'
        'def f():\n    """Said."""\n    return """a\nb"""\n'
    )
    assert count_code_lines(text) == 6


def test_the_vmm_imports_what_it_is_made_of() -> None:
    names = {path.name for path in list_module_files()}
    assert {"machine.py", "channel_device.py", "frontend_link.py"} <= names
    assert not names & {"vm.py", "frontend.py", "backend.py"}


def test_the_vmm_stays_small() -> None:
    lines = count_lines()
    assert lines <= GOALS["lines"], f"{lines} lines of Python run in the thin VMM's process: too many to read"
