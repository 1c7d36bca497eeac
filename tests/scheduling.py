"""How tests are dealt out to the workers of a run: what stays together, and what comes first.

The longest come first, so that the workers end at the same time: the nested guest's tests are one unit of
work, each test that boots guests of its own is one, and of all others a file is, with what its tests share.
"""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

LONGEST_FIRST = ("nested", "vm", "contract", "fuzz", "api", "unit")
SHARING_A_GUEST = ("tests/vm/test_one_of_each.py", "tests/vm/test_vmm_isolation.py")


def find_unit(node_id: str) -> str:
    """The unit of work that a test belongs to, as the beginning of its node's name."""
    family = find_family(node_id)
    if family == "nested":
        return "tests/nested"
    file = node_id.partition("::")[0]
    return node_id if family == "vm" and file not in SHARING_A_GUEST else file


def find_family(node_id: str) -> str:
    """The folder under ``tests`` that a test or a unit is in."""
    return node_id.removeprefix("tests/").partition("/")[0]


def rank(unit: str) -> int:
    """The place of a unit's family: 0 comes first."""
    family = find_family(unit)
    return LONGEST_FIRST.index(family) if family in LONGEST_FIRST else len(LONGEST_FIRST)


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives a worker that is about to run out of tests the next unit of the longest."""

    def _split_scope(self, nodeid: str) -> str:
        return find_unit(nodeid)

    def _assign_work_unit(self, node: object) -> None:
        self.workqueue.move_to_end(min(self.workqueue, key=rank), last=False)
        super()._assign_work_unit(node)
