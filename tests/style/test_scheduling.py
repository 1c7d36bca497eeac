"""How tests are dealt out to workers."""

from __future__ import annotations

import pytest
from tests.scheduling import find_unit, rank


@pytest.mark.parametrize(
    ("node_id", "unit"),
    [
        ("tests/nested/test_a.py::test_one", "tests/nested"),
        ("tests/nested/test_b.py::test_two[x::y]", "tests/nested"),
        ("tests/vm/test_c.py::test_three[a/b::c]", "tests/vm/test_c.py::test_three[a/b::c]"),
        ("tests/vm/test_vmm_isolation.py::test_four", "tests/vm/test_vmm_isolation.py"),
        ("tests/unit/store/test_d.py::test_five[1]", "tests/unit/store/test_d.py"),
    ],
)
def test_what_stays_together(node_id: str, unit: str) -> None:
    assert find_unit(node_id) == unit


def test_the_longest_come_first() -> None:
    units = ["tests/style/test_a.py", "tests/unit/test_b.py", "tests/vm/test_c.py::test_one", "tests/nested"]
    assert sorted(units, key=rank) == units[::-1]
