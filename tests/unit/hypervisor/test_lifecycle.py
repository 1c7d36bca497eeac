"""The guarded life cycle: every pair of states, and waiting."""

from __future__ import annotations

import asyncio
from itertools import product

import pytest

from duovisor.hypervisor.errors import WrongStateError
from duovisor.hypervisor.lifecycle import ENDED, TRANSITIONS, Lifecycle, State

ALLOWED = {
    "defined starting",
    "starting running", "starting paused", "starting stopping", "starting stopped", "starting crashed",
    "running paused", "running stopping", "running stopped", "running crashed",
    "paused running", "paused stopping", "paused stopped", "paused crashed",
    "stopping stopped", "stopping crashed",
}  # fmt: skip


def build_at(state: State) -> Lifecycle:
    lifecycle = Lifecycle("vm")
    lifecycle.history.append(state)
    return lifecycle


@pytest.mark.parametrize(("before", "after"), list(product(State, State)), ids=lambda state: state.value)
def test_every_step(before: State, after: State) -> None:
    lifecycle = build_at(before)
    if before is after:
        lifecycle.enter(after)
        assert lifecycle.history == [State.DEFINED, before]
    elif f"{before} {after}" in ALLOWED:
        lifecycle.enter(after)
        assert lifecycle.history == [State.DEFINED, before, after]
    else:
        with pytest.raises(WrongStateError, match=f"vm cannot go from {before} to {after}"):
            lifecycle.enter(after)
        assert lifecycle.state is before


def test_every_living_state_can_end_and_no_ended_one_goes_on() -> None:
    for state in set(State) - ENDED - {State.DEFINED}:
        assert ENDED <= TRANSITIONS[state]
    assert all(not TRANSITIONS[state] for state in ENDED)


def test_require_names_what_is_needed() -> None:
    lifecycle = build_at(State.STOPPED)
    with pytest.raises(WrongStateError) as caught:
        lifecycle.require({State.PAUSED, State.RUNNING}, "reset")
    assert str(caught.value) == "cannot reset vm: it is stopped (it must be running or paused)"
    build_at(State.RUNNING).require({State.RUNNING}, "reset")


async def test_waiting_sees_a_state_that_was_left_at_once() -> None:
    lifecycle = build_at(State.STARTING)
    waiting = asyncio.create_task(lifecycle.wait_for({State.PAUSED}, timeout_s=60))
    await asyncio.sleep(0)
    lifecycle.enter(State.RUNNING)
    await asyncio.sleep(0)
    assert not waiting.done()
    lifecycle.enter(State.PAUSED)
    assert await waiting is State.PAUSED


async def test_waiting_ends_with_the_life() -> None:
    lifecycle = build_at(State.RUNNING)
    waits = [asyncio.create_task(lifecycle.wait_for({State.PAUSED})) for _ in range(3)]
    await asyncio.sleep(0)
    lifecycle.enter(State.CRASHED)
    assert await asyncio.gather(*waits) == [State.CRASHED] * 3


async def test_waiting_has_a_deadline() -> None:
    with pytest.raises(TimeoutError):
        await build_at(State.RUNNING).wait_for({State.PAUSED}, timeout_s=0.01)
