"""Random histories: each store against a model that simply keeps every moment whole."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from duovisor.controlling.store.errors import StoreCompactedError
from duovisor.controlling.store.memory import MemoryStore
from duovisor.controlling.store.records import (
    Compare,
    Delete,
    Entry,
    Event,
    Get,
    Operation,
    Operator,
    Put,
    Target,
    Transaction,
)
from duovisor.controlling.store.sqlite import SqliteStore
from duovisor.controlling.store.sqlite_file import open_store_file
from duovisor.controlling.store.timers import ManualTimers

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from duovisor.controlling.store.interface import Store

KEYS = st.sampled_from(["/a", "/a/b", "/a/c", "/a0", "/b", "/b/~"])
PREFIXES = st.sampled_from(["/", "/a", "/a/", "/b/"])
VALUES = st.sampled_from([b"", b"1", b"22"])
NUMBERS = st.integers(0, 4)
COMPARES = st.one_of(
    st.builds(
        Compare,
        KEYS,
        st.sampled_from([Target.VERSION, Target.CREATE_REVISION, Target.MOD_REVISION]),
        NUMBERS,
        st.sampled_from(Operator),
    ),
    st.builds(Compare, KEYS, st.just(Target.VALUE), VALUES, st.sampled_from(Operator)),
)
OPERATIONS = st.lists(
    st.one_of(st.builds(Put, KEYS, VALUES), st.builds(Delete, KEYS)), max_size=3, unique_by=lambda o: o.key
).map(tuple)

Moment = dict[str, Entry]


class Model:
    """Every moment since the beginning, as plain dictionaries."""

    def __init__(self) -> None:
        self.moments: list[Moment] = [{}, {}]  # revision 0 is never seen; 1 is the empty store
        self.events: list[Event] = []

    @property
    def now(self) -> Moment:
        return self.moments[-1]

    def is_true(self, compare: Compare) -> bool:
        entry = self.now.get(compare.key)
        if compare.target is Target.VALUE:
            actual: Any = None if entry is None else entry.value
        elif entry is None:
            actual = 0
        else:
            actual = {
                Target.VERSION: entry.version,
                Target.CREATE_REVISION: entry.create_revision,
                Target.MOD_REVISION: entry.mod_revision,
            }[compare.target]
        if actual is None:
            return False
        match compare.operator:
            case Operator.EQUAL:
                return bool(actual == compare.operand)
            case Operator.NOT_EQUAL:
                return bool(actual != compare.operand)
            case Operator.GREATER:
                return bool(actual > compare.operand)
            case Operator.LESS:
                return bool(actual < compare.operand)

    def do(self, operations: tuple[Operation, ...]) -> None:
        revision, after, events = len(self.moments), dict(self.now), []
        for operation in operations:
            before = after.pop(operation.key, None)
            if isinstance(operation, Put):
                created, version = (before.create_revision, before.version + 1) if before else (revision, 1)
                after[operation.key] = Entry(
                    operation.key, operation.value, created, revision, version, operation.lease
                )
            if before or isinstance(operation, Put):
                events.append(Event(operation.key, revision, after.get(operation.key), before))
        if events:
            self.moments.append(after)
            self.events += events


class StoreMachine(RuleBasedStateMachine):
    """Anything that can be done to a store, and what must be true of it at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.timers = ManualTimers()
        self.model = Model()
        self.compacted = 0
        self.leases: list[int] = []
        self.store = self.run(self.open())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    async def open(self) -> Store:
        return MemoryStore(timers=self.timers)

    def teardown(self) -> None:
        self.run(self.store.close())
        self.runner.close()

    @initialize()
    def begin_with_something(self) -> None:
        self.commit((), (Put("/a/b", b"0"), Put("/b", b"0")), ())

    @rule(compare=st.lists(COMPARES, max_size=2).map(tuple), then=OPERATIONS, otherwise=OPERATIONS)
    def commit(
        self, compare: tuple[Compare, ...], then: tuple[Operation, ...], otherwise: tuple[Operation, ...]
    ) -> None:
        expected = all(self.model.is_true(one) for one in compare)
        outcome = self.run(self.store.commit(Transaction(compare, then, otherwise)))
        self.model.do(then if expected else otherwise)
        assert outcome.succeeded == expected
        assert outcome.revision == len(self.model.moments) - 1

    @rule(key=KEYS)
    def read(self, key: str) -> None:
        outcome = self.run(self.store.commit(Transaction(then=(Get(key),))))
        assert outcome.results == (self.model.now.get(key),)
        assert self.run(self.store.get(key)) == self.model.now.get(key)

    @rule(operations=st.lists(st.builds(Put, KEYS, VALUES), min_size=2, max_size=6))
    def put_at_once(self, operations: list[Put]) -> None:
        async def put_all() -> None:
            await asyncio.gather(*(self.store.put(one.key, one.value) for one in operations))

        self.run(put_all())
        for operation in operations:
            self.model.do((operation,))

    @rule(key=KEYS)
    def put_with_lease(self, key: str) -> None:
        lease = self.run(self.store.grant_lease(10))
        self.leases.append(lease)
        self.run(self.store.put(key, b"leased", lease=lease))
        self.model.do((Put(key, b"leased", lease),))

    @rule()
    def revoke(self) -> None:
        if self.leases:
            lease = self.leases.pop(0)
            self.run(self.store.revoke_lease(lease))
            self.model.do(tuple(Delete(key) for key, e in sorted(self.model.now.items()) if e.lease == lease))

    @rule(back=st.integers(0, 5))
    def compact(self, back: int) -> None:
        revision = len(self.model.moments) - 1 - back
        if revision > self.compacted:
            self.run(self.store.compact(revision))
            self.compacted = revision

    @rule(prefix=PREFIXES, limit=st.integers(1, 3), back=st.integers(0, 5))
    def page_through(self, prefix: str, limit: int, back: int) -> None:
        revision = len(self.model.moments) - 1 - back
        if revision < self.compacted:
            with pytest.raises(StoreCompactedError):
                self.run(self.store.range(prefix, revision=revision))
        elif revision >= 1:
            expected = [
                e for key, e in sorted(self.model.moments[revision].items()) if key.startswith(prefix)
            ]
            assert self.pages(prefix, limit, revision) == expected

    def pages(self, prefix: str, limit: int, revision: int) -> list[Entry]:
        found: list[Entry] = []
        more = True
        while more:
            after = found[-1].key if found else None
            page = self.run(self.store.range(prefix, limit=limit, after=after, revision=revision))
            assert len(page.entries) == limit or not page.more
            found += page.entries
            more = page.more
        return found

    @rule(prefix=PREFIXES)
    def watch_what_is_kept(self, prefix: str) -> None:
        expected = [
            event
            for event in self.model.events
            if event.revision > self.compacted and event.key.startswith(prefix)
        ]

        async def take() -> list[Event]:
            async with self.store.watch(prefix, from_revision=self.compacted + 1) as events:
                return [await anext(events) for _ in expected]

        assert self.run(take()) == expected

    @invariant()
    def everything_agrees(self) -> None:
        page = self.run(self.store.range("/"))
        assert page.revision == len(self.model.moments) - 1
        assert list(page.entries) == [entry for _, entry in sorted(self.model.now.items())]


class SqliteMachine(StoreMachine):
    """The same, with a file that is closed and opened again now and then."""

    async def open(self) -> Store:
        if not hasattr(self, "folder"):
            self.folder = Path(tempfile.mkdtemp(prefix="duovisor-test-store-"))
        return SqliteStore(open_store_file(self.folder / "store.sqlite"), timers=self.timers)

    @rule()
    def reopen(self) -> None:
        self.run(self.store.close())
        self.store = self.run(self.open())

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.folder)


@pytest.mark.parametrize("machine", [StoreMachine, SqliteMachine])
def test_any_history_is_as_the_model_says(machine: type[StoreMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
