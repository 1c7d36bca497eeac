"""The state of a machine's devices out of one QEMU and into another, over QMP and a pipe.

``prepare`` both, have the destination ``await_state``, ``save`` the source, and ``load`` what the translator
made of it; then the destination may ``cont``. Whatever happened before, the source may instead. Until one of
them did, both hold the same guest; nothing here starts processors.

The source may run when it is saved: QEMU then stops it itself, and makes ready before it does. The guest's
pause is some 3 ms shorter than with ``stop`` first (QEMU 7.2, 256 MiB, both designs, stop to end of stream:
4.2 and 5.4 ms instead of 7.3 and 8.2).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from typing import TYPE_CHECKING, BinaryIO

from duovisor.hypervisor.errors import HypervisorError, QmpError, VmmGoneError
from duovisor.hypervisor.migration.errors import HandoverError
from duovisor.hypervisor.migration.stream import IGNORE_SHARED, MAX_STREAM_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from duovisor.hypervisor.qmp import Qmp

# late-block-activate: the destination locks and uses its images at ``cont``, not before
CAPABILITIES = (IGNORE_SHARED, "late-block-activate", "events")
SAVE_TIMEOUT_S = LOAD_TIMEOUT_S = 10.0
CANCEL_TIMEOUT_S = 5.0
PIPE_BYTES = 1 << 20  # a whole stream, so that QEMU never waits for us; more needs privilege
FINAL = frozenset({"completed", "failed", "cancelled"})
_NONE_YET = frozenset({"", "none"})
_UNLIMITED = 0
_DESCRIPTOR = "migration"


def _say_nothing() -> str:
    return ""


async def prepare(qmp: Qmp) -> None:
    """Have a VMM leave shared memory out of a migration, and tell of its steps; the guest does not notice.

    Raises ``HandoverError`` for a QEMU that cannot.
    """
    missing = set(CAPABILITIES) - await qmp.query_migration_abilities()
    if missing:
        raise HandoverError(f"{qmp.name}: this QEMU has no {', '.join(sorted(missing))}")
    await qmp.set_migration(CAPABILITIES, **{"max-bandwidth": _UNLIMITED})


async def save(qmp: Qmp, *, timeout_s: float = SAVE_TIMEOUT_S) -> bytes:
    """The device state of a machine, which is stopped then and whose VMM has released its images.

    After a failure a source that ran before runs on, unless the VMM has ended; whatever came of it, ``cont``
    lets it go on. Raises ``HandoverError`` (also after ``timeout_s``), ``VmmGoneError``, ``QmpError`` or
    ``QmpTimeoutError``.
    """
    reading, writing = _open_pipe()
    with reading, writing:
        await qmp.getfd(_DESCRIPTOR, writing.fileno())
        writing.close()  # the end of the stream is where QEMU, the only writer, closes it
        try:
            async with asyncio.timeout(timeout_s):
                await qmp.migrate(f"fd:{_DESCRIPTOR}")
                stream = await _read_to_end(reading)
                await _wait_completed(qmp, "saved")
        except BaseException as error:
            reading.close()  # a QEMU that waits for room in the pipe fails at once
            await _give_up(qmp)
            if isinstance(error, TimeoutError):
                raise HandoverError(f"{qmp.name}: its state was not saved within {timeout_s:g} s") from error
            raise
    return stream


async def load(
    qmp: Qmp,
    stream: bytes,
    *,
    timeout_s: float = LOAD_TIMEOUT_S,
    last_words: Callable[[], str] = _say_nothing,
) -> None:
    """``await_state`` and ``Waiting.load`` in one."""
    waiting = await await_state(qmp, last_words=last_words)
    try:
        await waiting.load(stream, timeout_s=timeout_s)
    finally:
        waiting.close()


async def await_state(qmp: Qmp, *, last_words: Callable[[], str] = _say_nothing) -> Waiting:
    """Have a VMM that was started with ``-incoming defer`` wait for a state, while the source still runs.

    A QEMU that cannot load a state says why on its standard error and ends; ``last_words`` is asked for that.
    Raises ``HandoverError``, ``QmpError`` or ``QmpTimeoutError``; the VMM is of no use any more then.
    """
    reading, writing = _open_pipe()
    try:
        with reading, _explained(qmp, last_words):
            await qmp.getfd(_DESCRIPTOR, reading.fileno())
            reading.close()
            await qmp.migrate_incoming(f"fd:{_DESCRIPTOR}")
    except BaseException:
        writing.close()
        raise
    return Waiting(qmp, writing, last_words)


class Waiting:
    """A VMM that waits for a state; ``close`` it in any case."""

    def __init__(self, qmp: Qmp, pipe: BinaryIO, last_words: Callable[[], str]) -> None:
        self._qmp = qmp
        self._pipe = pipe
        self._last_words = last_words

    async def load(self, stream: bytes, *, timeout_s: float = LOAD_TIMEOUT_S) -> None:
        """Give it the state; it is paused then. Raises as ``await_state``, also after ``timeout_s``."""
        feeding = asyncio.create_task(_feed(self._pipe, stream))
        name = self._qmp.name
        try:
            async with asyncio.timeout(timeout_s):
                with _explained(self._qmp, self._last_words):
                    await _wait_completed(self._qmp, "loaded")
        except TimeoutError as error:
            raise HandoverError(f"{name}: the state was not loaded within {timeout_s:g} s") from error
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)

    def close(self) -> None:
        """End the stream, wherever it is; once is enough."""
        self._pipe.close()


@contextlib.contextmanager
def _explained(qmp: Qmp, last_words: Callable[[], str]) -> Iterator[None]:
    try:
        yield
    except VmmGoneError as error:
        said = last_words()
        raise HandoverError(f"{qmp.name}: cannot load the state{said and f': {said}'}") from error


async def _wait_completed(qmp: Qmp, what: str) -> None:
    while (status := await qmp.next_migration_status()) not in FINAL:
        pass
    if status != "completed":
        why = (await qmp.query_migrate())[1]
        raise HandoverError(f"{qmp.name}: the state was not {what}, it {status}{why and f': {why}'}")


async def _give_up(qmp: Qmp) -> None:
    """See to it that no migration is under way; what cannot be said to a VMM need not be."""
    with contextlib.suppress(HypervisorError, TimeoutError):
        async with asyncio.timeout(CANCEL_TIMEOUT_S):
            await qmp.migrate_cancel()
            while (await qmp.query_migrate())[0] not in FINAL | _NONE_YET:
                await qmp.next_migration_status()
            with contextlib.suppress(QmpError):  # a migration that began took it
                await qmp.closefd(_DESCRIPTOR)


def _open_pipe() -> tuple[BinaryIO, BinaryIO]:
    """Both ends; neither makes us wait."""
    ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    with contextlib.suppress(OSError):  # past the user's share of pipe memory: it is slower then
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return os.fdopen(ends[0], "rb", buffering=0), os.fdopen(ends[1], "wb", buffering=0)


async def _read_to_end(pipe: BinaryIO) -> bytes:
    """Everything until the last writer closed it. Raises ``HandoverError`` when that is too much."""
    loop, ready, stream = asyncio.get_running_loop(), asyncio.Event(), bytearray()
    loop.add_reader(pipe, ready.set)
    try:
        while True:
            await ready.wait()
            ready.clear()
            try:
                part = os.read(pipe.fileno(), PIPE_BYTES)
            except BlockingIOError:
                continue
            if not part:
                return bytes(stream)
            stream += part
            if len(stream) > MAX_STREAM_BYTES:
                raise HandoverError(f"the state has more than {MAX_STREAM_BYTES} bytes")
    finally:
        loop.remove_reader(pipe)


async def _feed(pipe: BinaryIO, data: bytes) -> None:
    """Write as the reader takes it, and close the pipe; a reader that goes away says why itself."""
    loop, ready, left = asyncio.get_running_loop(), asyncio.Event(), memoryview(data)
    loop.add_writer(pipe, ready.set)
    try:
        while left:
            await ready.wait()
            ready.clear()
            with contextlib.suppress(BlockingIOError):
                left = left[os.write(pipe.fileno(), left) :]
    except BrokenPipeError:
        return
    finally:
        loop.remove_writer(pipe)
        pipe.close()
