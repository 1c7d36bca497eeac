"""A full memory barrier in plain Python.

Two places of a split virtqueue need one (virtio 1.2, 2.7.10 and 2.7.13.4): after storing ``avail_event``
and before loading ``avail.idx``, and after storing ``used.idx`` and before loading ``used_event``. Each
side stores one word and loads the other's; a processor may load before its store is visible, both sides
then see the old value, and nobody notifies: the queue hangs. x86-64 keeps every other pair of accesses in
order, so plain stores and loads do elsewhere.

CPython has no fence, but every lock operation without contention is an atomic read-modify-write:
``sem_post`` in ``release`` (``lock xadd``) and ``sem_trywait`` in ``acquire`` (``lock cmpxchg``); from 3.14
on an atomic exchange on the lock's byte. On x86-64 each of them alone is a full barrier. The order release,
then acquire, on a lock that is kept held, is a full barrier on ARMv8 too (store-release before
load-acquire). It costs 90 ns, a third of the cheapest system call.
"""

from __future__ import annotations

from _thread import allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def make_memory_fence() -> Callable[[], None]:
    """A barrier for the use of one thread; each user needs one of its own."""
    lock = allocate_lock()
    lock.acquire()
    release, acquire = lock.release, lock.acquire

    def fence() -> None:
        release()
        acquire()

    return fence
