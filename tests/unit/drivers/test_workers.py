"""The pool: what is handed over comes back, in whatever order, and the loop is told."""

from __future__ import annotations

import select
import threading
from errno import EIO
from typing import TYPE_CHECKING

import pytest
from tests.unit.channel.guest import BUFFERS, GUEST, Guest

from duovisor.controlling.drivers.workers import Job, WorkerPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    made = WorkerPool(3)
    yield made
    made.close()


def job(call: Callable[[], None]) -> Job:
    guest = Guest()
    guest.front.submit(guest.front.prepare([(GUEST + BUFFERS, 1)], []))
    (chain,) = guest.start_device().pop()
    guest.close()
    return Job(chain, memoryview(bytearray(1)), 1, call, ())


def collect(pool: WorkerPool, count: int) -> list[Job]:
    done: list[Job] = []
    while len(done) < count:
        pool.wait()
        while pool.done:
            done.append(pool.done.popleft())
            pool.outstanding -= 1
    return done


def test_threads_start_only_when_needed(pool: WorkerPool) -> None:
    before = threading.active_count()
    for _ in range(10):
        pool.submit(job(lambda: None))
        collect(pool, 1)
    assert threading.active_count() == before + 1


def test_jobs_overlap(pool: WorkerPool) -> None:
    meeting = threading.Barrier(3, timeout=60)

    def meet() -> None:
        meeting.wait()

    for _ in range(3):
        pool.submit(job(meet))
    assert [done.error for done in collect(pool, 3)] == [0] * 3


def test_a_failed_call_is_a_failed_job_and_the_thread_lives(pool: WorkerPool) -> None:
    def fail() -> None:
        raise OSError(5, "medium error")

    for _ in range(5):
        pool.submit(job(fail))
    assert [done.error for done in collect(pool, 5)] == [EIO] * 5
    pool.submit(job(lambda: None))
    assert [done.error for done in collect(pool, 1)] == [0]


def test_the_loop_is_told(pool: WorkerPool) -> None:
    pool.submit(job(lambda: None))
    pool.wait()
    pool.submit(job(lambda: None))
    assert select.select([pool.descriptor], [], [], 5)[0] == [pool.descriptor]


def test_waiting_for_nothing_returns(pool: WorkerPool) -> None:
    pool.wait()
    assert not pool.done
