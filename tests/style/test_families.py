"""The rule that no family of tests is skipped as a whole unnoticed."""

from __future__ import annotations

import pytest
from tests.families import Families, is_skipping_a_failure


def make_families() -> Families:
    families = Families()
    families.add("tests/unit/images/test_a.py::test_one", "passed")
    families.add("tests/unit/test_b.py::test_two", "skipped", "Skipped: no zstd")
    families.add("tests/vm/test_c.py::test_three", "skipped", "Skipped: no QEMU")
    families.add("tests/vm/test_c.py::test_four", "skipped", "Skipped: later")
    return families


def test_a_family_of_which_something_ran_is_not_skipped() -> None:
    assert make_families().list_skipped() == ["vm"]


def test_a_failure_is_a_run() -> None:
    families = make_families()
    families.add("tests/vm/test_c.py::test_five", "failed")
    assert families.list_skipped() == []


def test_the_table_counts_and_says_why() -> None:
    assert make_families().build_lines() == [
        "family       passed   failed  skipped",
        "unit              1        0        1",
        "vm                0        0        2",
        "vm: nothing ran: Skipped: no QEMU",
    ]


@pytest.mark.parametrize(
    ("environ", "verdict"),
    [({}, False), ({"CI": "true"}, True), ({"DUOVISOR_REQUIRE_VM": "1"}, True), ({"CI": ""}, False)],
)
def test_when_the_rule_holds(environ: dict[str, str], verdict: bool) -> None:
    assert is_skipping_a_failure(environ) is verdict
