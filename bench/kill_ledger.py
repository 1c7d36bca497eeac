"""What the clients of a service that is killed know: acknowledged changes, and those in doubt.

A change that was acknowledged must be there after the kill; one whose answer did not come may be or not. A VM
may have ended only if somebody asked for that and was not told that it was refused.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from duovisor.client.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SERVER_ERROR = 500
FINAL = 1 << 62  # the revision of a deletion: nothing comes after it


class Fact(NamedTuple):
    """What a VM is called and marked with; both ``None`` once it was deleted."""

    name: str | None
    mark: int | None


GONE = Fact(None, None)


@dataclass
class KnownVm:
    """The latest acknowledged fact of a VM, its revision, and what it may be instead."""

    settled: Fact
    revision: int
    doubts: list[Fact] = field(default_factory=list)

    def settle(self, fact: Fact, revision: int) -> None:
        """Acknowledgements of several clients may come in another order than the changes were made."""
        if revision > self.revision:
            self.settled, self.revision = fact, revision


class Answer:
    """Filled in by who makes a change, when the service has answered."""

    def __init__(self) -> None:
        self.revision = FINAL
        self.uuid = ""


def read_fact(vm: Mapping[str, Any]) -> Fact:
    """The fact that a VM's document shows; the order of its autostart is the mark."""
    return Fact(vm["record"]["name"], vm["record"]["autostart"]["order"])


class Ledger:
    """Shared by all clients, and read by the judge while none of them acts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._vms: dict[str, KnownVm] = {}
        self._creations: list[Fact] = []
        self._ending: dict[int, str] = {}
        self._asked_to_end: set[str] = set()
        self._operations: dict[str, str] = {}
        self._count = 0
        self.violations: list[str] = []

    def next_number(self) -> int:
        """A number that nobody else gets."""
        with self._lock:
            self._count += 1
            return self._count

    def report(self, violation: str) -> None:
        """Note what must not be."""
        with self._lock:
            self.violations.append(violation)

    @contextmanager
    def creating(self, fact: Fact) -> Iterator[Answer]:
        """A VM is being defined: in doubt until the body has an answer."""
        answer = Answer()
        with self._doubt(self._creations, fact):
            yield answer
        with self._lock:
            self._know(answer.uuid, fact, 0).settle(fact, answer.revision)

    @contextmanager
    def changing(self, vm: Mapping[str, Any], fact: Fact) -> Iterator[Answer]:
        """A VM, as it was seen, is being made something else."""
        record = vm["record"]
        answer = Answer()
        with self._lock:
            known = self._know(record["uuid"], read_fact(vm), record["revision"])
        with self._doubt(known.doubts, fact):
            yield answer
        with self._lock:
            known.settle(fact, answer.revision)

    @contextmanager
    def _doubt(self, doubts: list[Fact], fact: Fact) -> Iterator[None]:
        with self._lock:
            doubts.append(fact)
        try:
            yield
        except ApiError as error:
            if error.status < SERVER_ERROR:  # refused: nothing was changed
                with self._lock:
                    doubts.remove(fact)
            raise
        with self._lock:
            doubts.remove(fact)

    def _know(self, uuid: str, fact: Fact, revision: int) -> KnownVm:
        return self._vms.setdefault(uuid, KnownVm(fact, revision))

    def begin_ending(self, name: str) -> int:
        """Somebody asks for the end of a run; returns what ``end_settled`` takes."""
        number = self.next_number()
        with self._lock:
            self._ending[number] = name
        return number

    def end_settled(self, number: int, *, refused: bool) -> None:
        """It was done and is over, or was refused: later runs of the VM have nothing to do with it."""
        with self._lock:
            name = self._ending.pop(number)
            if not refused:
                self._asked_to_end.add(name)

    def accepted(self, operation: Mapping[str, Any]) -> None:
        """The service said 202."""
        with self._lock:
            self._operations[operation["id"]] = operation["action"]

    def finished(self, operation: Mapping[str, Any]) -> None:
        """The service said that an operation is over, which it must say for ever."""
        with self._lock:
            self._operations[operation["id"]] = operation["state"]

    @property
    def may_be_ending(self) -> set[str]:
        """VMs with a stop or shutdown whose end nobody has seen."""
        return set(self._ending.values())

    @property
    def may_have_ended(self) -> set[str]:
        """VMs that were asked to end at any time since the last ``reconcile``."""
        return self._asked_to_end | self.may_be_ending

    @property
    def operations(self) -> dict[str, str]:
        """Operations since the last ``reconcile``, each with its action or the state in which it was seen."""
        return dict(self._operations)

    def reconcile(self, vms: list[dict[str, Any]]) -> list[str]:
        """Compare with all that the service has; afterwards that is what is known. Returns violations."""
        found = []
        actual = {vm["record"]["uuid"]: vm for vm in vms}
        for uuid, known in self._vms.items():
            fact = read_fact(actual[uuid]) if uuid in actual else GONE
            if fact not in (known.settled, *known.doubts):
                found.append(f"VM {uuid} is {fact}; acknowledged {known.settled}, in doubt {known.doubts}")
        for uuid in actual.keys() - self._vms.keys():
            if read_fact(actual[uuid]) not in self._creations:
                found.append(f"VM {uuid}, {read_fact(actual[uuid])}, is there though nobody defined it")
        self._vms = {uuid: KnownVm(read_fact(vm), vm["record"]["revision"]) for uuid, vm in actual.items()}
        self._creations.clear()
        self._ending.clear()
        self._asked_to_end.clear()
        self._operations.clear()
        return found
