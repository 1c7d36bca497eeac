"""Compare-and-swap over several keys."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.store.errors import LeaseNotFoundError, StoreRequestError
from duovisor.controlling.store.records import (
    Compare,
    Delete,
    Get,
    Operator,
    Put,
    Target,
    Transaction,
    is_absent,
    is_unchanged_since,
)
from duovisor.controlling.store.requests import OPERATIONS_MAX

if TYPE_CHECKING:
    from duovisor.controlling.store.interface import Store


async def test_all_of_a_transaction_is_one_revision(store: Store) -> None:
    await store.put("/old", b"")
    start = await store.revision()
    outcome = await store.commit(Transaction(then=(Put("/a", b"1"), Put("/b", b"2"), Delete("/old"))))
    assert outcome.succeeded
    assert outcome.revision == await store.revision() == start + 1
    assert [entry and entry.mod_revision for entry in outcome.results[:2]] == [start + 1, start + 1]
    assert [entry.key for entry in (await store.range("/")).entries] == ["/a", "/b"]


async def test_when_one_condition_fails_the_other_side_is_done(store: Store) -> None:
    await store.put("/a", b"1")
    outcome = await store.commit(
        Transaction(
            compare=(is_absent("/b"), is_absent("/a")),
            then=(Put("/a", b"2"), Put("/b", b"2")),
            otherwise=(Get("/a"), Get("/b")),
        )
    )
    assert not outcome.succeeded
    assert [entry and entry.value for entry in outcome.results] == [b"1", None]
    assert await store.get("/b") is None


async def test_a_transaction_that_changes_nothing_has_no_revision(store: Store) -> None:
    start = await store.revision()
    for transaction in (Transaction(), Transaction(then=(Get("/a"), Delete("/b")))):
        outcome = await store.commit(transaction)
        assert (outcome.succeeded, outcome.revision) == (True, start)
    assert await store.revision() == start


async def test_a_read_sees_the_writes_before_it(store: Store) -> None:
    outcome = await store.commit(Transaction(then=(Get("/a"), Put("/a", b"1"), Get("/a"))))
    before, put, after = outcome.results
    assert before is None
    assert put is not None
    assert after == put


@pytest.mark.parametrize(
    ("target", "less", "equal", "greater"),
    [
        (Target.VERSION, 1, 2, 3),
        (Target.VALUE, b"m", b"mm", b"n"),
    ],
)
async def test_conditions_on_a_key(
    store: Store, target: Target, less: int | bytes, equal: int | bytes, greater: int | bytes
) -> None:
    await store.put("/a", b"first")
    await store.put("/a", b"mm")
    truths = {
        Operator.EQUAL: (False, True, False),
        Operator.NOT_EQUAL: (True, False, True),
        Operator.GREATER: (True, False, False),
        Operator.LESS: (False, False, True),
    }
    for operator, expected in truths.items():
        found = [
            (await store.commit(Transaction((Compare("/a", target, operand, operator),)))).succeeded
            for operand in (less, equal, greater)
        ]
        assert (operator, *found) == (operator, *expected)


async def test_conditions_on_revisions(store: Store) -> None:
    first = await store.put("/a", b"1")
    last = await store.put("/a", b"2")
    held = {
        (target, revision): (await store.commit(Transaction((Compare("/a", target, revision),)))).succeeded
        for target in (Target.CREATE_REVISION, Target.MOD_REVISION)
        for revision in (first.mod_revision, last.mod_revision)
    }
    assert [key for key, value in held.items() if value] == [
        (Target.CREATE_REVISION, first.mod_revision),
        (Target.MOD_REVISION, last.mod_revision),
    ]


@pytest.mark.parametrize(
    ("compare", "expected"),
    [
        (Compare("/a", Target.VERSION, 0), True),
        (Compare("/a", Target.CREATE_REVISION, 0), True),
        (Compare("/a", Target.MOD_REVISION, 0), True),
        (Compare("/a", Target.VERSION, 0, Operator.GREATER), False),
        (Compare("/a", Target.VALUE, b""), False),
        (Compare("/a", Target.VALUE, b"x", Operator.NOT_EQUAL), False),
    ],
)
async def test_conditions_on_an_absent_key(store: Store, compare: Compare, expected: bool) -> None:
    assert (await store.commit(Transaction((compare,)))).succeeded is expected


async def test_of_many_who_saw_the_same_revision_one_wins(store: Store) -> None:
    seen = (await store.put("/a", b"")).mod_revision
    outcomes = await asyncio.gather(
        *(
            store.commit(Transaction((is_unchanged_since("/a", seen),), then=(Put("/a", f"{who}".encode()),)))
            for who in range(20)
        )
    )
    assert [outcome.succeeded for outcome in outcomes].count(True) == 1
    assert await store.revision() == seen + 1


async def test_concurrent_transactions_are_done_one_after_the_other(store: Store) -> None:
    await store.put("/count", b"0")

    async def increment() -> None:
        while True:
            entry = await store.get("/count")
            assert entry is not None
            change = Put("/count", b"%d" % (int(entry.value) + 1))
            if (
                await store.commit(
                    Transaction((is_unchanged_since("/count", entry.mod_revision),), then=(change,))
                )
            ).succeeded:
                return

    await asyncio.gather(*(increment() for _ in range(20)))
    entry = await store.get("/count")
    assert entry is not None
    assert entry.value == b"20"


@pytest.mark.parametrize(
    "transaction",
    [
        Transaction(then=(Put("/a", b"1"), Put("/a", b"2"))),
        Transaction(then=(Put("/a", b"1"), Delete("/a"))),
        Transaction(otherwise=(Put("/b", b"1"), Put("/b", b"2"))),
        Transaction(then=tuple(Put(f"/{number}", b"") for number in range(OPERATIONS_MAX + 1))),
        Transaction(compare=(is_absent("/a"),) * (OPERATIONS_MAX + 1)),
        Transaction(compare=(Compare("/a", Target.VALUE, 1),)),
        Transaction(compare=(Compare("/a", Target.VERSION, b"1"),)),
        Transaction(compare=(is_absent("a"),)),
        Transaction(then=(Put("/good", b""), Get("bad"))),
    ],
)
async def test_a_transaction_that_cannot_be_is_refused(store: Store, transaction: Transaction) -> None:
    start = await store.revision()
    with pytest.raises(StoreRequestError):
        await store.commit(transaction)
    assert await store.revision() == start


async def test_a_transaction_that_fails_in_the_middle_did_nothing(store: Store) -> None:
    start = await store.revision()
    with pytest.raises(LeaseNotFoundError):
        await store.commit(Transaction(then=(Put("/a", b""), Put("/b", b"", lease=4711))))
    assert await store.revision() == start
    assert await store.get("/a") is None


async def test_the_failure_of_one_does_not_touch_those_beside_it(store: Store) -> None:
    start = await store.revision()
    results = await asyncio.gather(
        store.put("/a", b""), store.put("/b", b"", lease=4711), store.put("/c", b""), return_exceptions=True
    )
    assert isinstance(results[1], LeaseNotFoundError)
    assert [entry.key for entry in (await store.range("/")).entries] == ["/a", "/c"]
    assert await store.revision() == start + 2
