"""``duovisor compare``: its options, and a comparison that is complete; no VM is started."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from tests.unit.cli.conftest import check_refusal
from tests.unit.comparison.synthetic import build_store

from duovisor.cli.compare import SECTIONS, build_scale
from duovisor.comparison import plan
from duovisor.comparison.samples import HEADER, SAMPLES, holding

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.unit.cli.conftest import Outcome

    from duovisor.comparison.samples import SampleStore


def write_store(folder: Path, store: SampleStore) -> None:
    folder.mkdir()
    (folder / HEADER).write_text(store.header.model_dump_json())
    (folder / SAMPLES).write_text("".join(record.model_dump_json() + "\n" for record in store.records))


def test_the_command_knows_the_plan_s_sections() -> None:
    assert plan.SECTIONS == SECTIONS


def test_options_make_a_scale() -> None:
    assert build_scale(None, None, (), None, None) == plan.QUICK
    assert build_scale("full", None, (), None, None) == plan.FULL
    changed = build_scale("quick", "other", ("storage", "start"), 2, 0.5)
    assert changed.sections == ("start", "storage")
    assert (changed.rounds, changed.fault_rounds, changed.job_s, changed.image) == (2, 2, 0.5, "other")
    assert changed.budget_s is None  # who says how much gets all of it
    assert build_scale("quick", None, (), 9, None, 20).budget_s == 1200
    assert build_scale(None, None, ("storage",), None, None).budget_s == 540


def test_a_complete_comparison_is_reported_again(run_here: Callable[..., Outcome], tmp_path: Path) -> None:
    write_store(tmp_path / "out", build_store(tmp_path, factors={"boot.boot_s": 2.0}, noise=0.001))
    outcome = run_here("compare", "--output", tmp_path / "out")
    assert outcome.exit_code == 0
    assert "is complete; writing its report again" in outcome.output
    assert "microkernelized" in outcome.output
    assert (tmp_path / "out/report.html").exists()
    document = json.loads(run_here("compare", "--output", tmp_path / "out", "--json").output)
    assert document["complete"] is True


def test_a_plan_is_told_and_nothing_done(run_here: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = run_here("compare", "--plan", "--full", "--output", tmp_path / "out")
    assert outcome.exit_code == 0
    assert not (tmp_path / "out").exists()
    assert all(section in outcome.output for section in SECTIONS)
    assert f"{len(plan.build_steps(plan.FULL))} steps, about" in outcome.output
    assert "ends within" not in outcome.output
    assert "ends within 9 min" in run_here("compare", "--plan").output


def test_the_plan_of_one_that_was_interrupted_is_what_is_left(
    run_here: Callable[..., Outcome], tmp_path: Path
) -> None:
    store = build_store(tmp_path, steps=200)
    write_store(tmp_path / "out", store)
    document = json.loads(run_here("compare", "--plan", "--output", tmp_path / "out", "--json").output)
    left = len(plan.build_steps(plan.QUICK)) - 200
    assert document["steps"] == left
    assert document["is_measured"] is True
    assert document["limit_seconds"] == 540 - sum(record.seconds for record in store.records)
    assert sum(section["steps"] for section in document["sections"]) == left


def test_a_comparison_that_is_at_work_is_not_joined(run_here: Callable[..., Outcome], tmp_path: Path) -> None:
    with holding(tmp_path / "out"):
        said = check_refusal(run_here("compare", "--output", tmp_path / "out"), 2)
    assert "another comparison is at work" in said
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_of_something_else_is_refused(run_here: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    check_refusal(run_here("compare", "--output", tmp_path), 2)
    assert [path.name for path in tmp_path.glob("*.txt")] == ["letter.txt"]


def test_a_comparison_of_another_machine_is_refused(run_here: Callable[..., Outcome], tmp_path: Path) -> None:
    write_store(tmp_path / "out", build_store(tmp_path, steps=3))
    said = check_refusal(run_here("compare", "--output", tmp_path / "out"), 2)
    assert "another machine" in said
    assert "name a new folder" in said


def test_an_image_that_is_not_there(run_here: Callable[..., Outcome], tmp_path: Path) -> None:
    check_refusal(run_here("compare", "--image", "nothing", "--output", tmp_path / "out"), 3)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [("--rounds", "0"), ("--seconds", "0"), ("--minutes", "0"), ("--only", "nothing"), ("extra",)],
)
def test_wrong_options(run_here: Callable[..., Outcome], arguments: tuple[str, ...]) -> None:
    assert run_here("compare", *arguments).exit_code == 2
