"""The first-day guide is read as a person reads it."""

from __future__ import annotations

import pytest
from tests.style.source_tree import ROOT
from tests.vm.first_day import matches, parse_guide

GUIDE = "text\n```console\n$ one  two\nA   b\n$ three\n```\nmore\n```\n$ not this\n```\n"


def test_steps_are_what_is_typed_and_what_that_prints() -> None:
    assert list(parse_guide(GUIDE)) == [("one  two", ("A   b",)), ("three", ())]


@pytest.mark.parametrize(
    ("printed", "output", "expected"),
    [
        (("a b",), "a    b\n", True),
        (("a b",), "a c\n", False),
        (("a … c",), "a lot of c\n", True),
        (("a…",), "a\n", True),
        ((), "", True),
        ((), "a\n", False),
        (("…",), "any\nlines\n", True),
        (("…",), "", False),
        (("a", "…", "z"), "a\nb\nc\nz\n", True),
        (("a.b",), "axb\n", False),
    ],
)
def test_what_was_printed_is_held_against_the_guide(
    printed: tuple[str, ...], output: str, expected: bool
) -> None:
    assert matches(printed, output) is expected


def test_the_guide_has_steps_for_both_designs() -> None:
    commands = [step.command for step in parse_guide((ROOT / "docs/first-day.md").read_text())]
    assert len(commands) > 20
    assert any("--design microkernelized" in command for command in commands)
