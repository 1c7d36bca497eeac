"""Operations: work that takes time, with progress, cancel, and a history that survives the service.

::

    pending ──► running ──► done | failed | cancelled
        └───────────┴─────► interrupted            (the service ended meanwhile)

One operation at a time may be under way on an object. What an interrupted one left half done is finished or
rolled back by the manager of that object when the service starts again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from duovisor.controlling.service.errors import (
    InternalError,
    OperationCancelledError,
    OperationFinishedError,
    OperationInterruptedError,
    OperationNotFoundError,
    StoppingError,
    TooManyOperationsError,
)
from duovisor.controlling.service.events import Outcome
from duovisor.controlling.service.tokens import utc_now
from duovisor.controlling.store.documents import DocumentKind
from duovisor.controlling.store.walking import walk
from duovisor.controlling.vms.errors import BusyError
from duovisor.controlling.vms.records import MoveResult, Progress
from duovisor.errors import DuovisorError

if TYPE_CHECKING:
    from duovisor.controlling.service.events import EventLog
    from duovisor.controlling.store.interface import Store

PREFIX = "/operations/"
MAX_UNDER_WAY = 256
PERCENT_DONE = 100
MESSAGE_MAX = 500

Work = Callable[[Progress], Awaitable[object]]

_log = logging.getLogger(__name__)


class OperationState(StrEnum):
    """Where an operation is."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


UNDER_WAY = frozenset({OperationState.PENDING, OperationState.RUNNING})


class OperationFault(BaseModel):
    """Why an operation did not do what it was for, as an error reply would say it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: str
    message: str
    remedy: str = ""


class Operation(BaseModel):
    """One operation; ``progress`` is in percent, ``error`` is there when its state says that it failed.

    ``result`` is there when it gave a running VM another VMM.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    action: str
    object: str
    actor: str
    state: OperationState
    progress: int = Field(ge=0, le=PERCENT_DONE)
    message: str = ""
    error: OperationFault | None = None
    result: MoveResult | None = None
    created_at: datetime
    finished_at: datetime | None = None


OPERATION = DocumentKind("operation", Operation)


class Operations:
    """Starts operations, knows all that are kept, newest last, and writes their beginnings and ends."""

    def __init__(
        self, store: Store, events: EventLog, *, kept: int = 1000, now: Callable[[], datetime] = utc_now
    ) -> None:
        self._store = store
        self._events = events
        self._kept = kept
        self._now = now
        self._all: dict[str, Operation] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._cancelled: set[str] = set()
        self._closing = False

    async def open(self) -> int:
        """Read the history; what was under way is interrupted now. Returns how many those were."""
        async for entry in walk(self._store, PREFIX):
            operation = OPERATION.decode(entry.value, key=entry.key)
            self._all[operation.id] = operation
        interrupted = [operation for operation in self._all.values() if operation.state in UNDER_WAY]
        for operation in interrupted:
            await self._finish(operation.id, _interrupted())
        return len(interrupted)

    def get(self, id: str) -> Operation:
        """An operation. Raises ``OperationNotFoundError``."""
        try:
            return self._all[id]
        except KeyError:
            raise OperationNotFoundError(
                f"there is no operation {id!r}", remedy="the history keeps only the newest"
            ) from None

    def list(self, *, state: OperationState | None = None) -> list[Operation]:
        """Every operation that is kept, newest first."""
        return [o for o in reversed(self._all.values()) if state is None or o.state is state]

    def count_by_state(self) -> dict[OperationState, int]:
        """How many of the operations that are kept are in each state."""
        counts = dict.fromkeys(OperationState, 0)
        for operation in self._all.values():
            counts[operation.state] += 1
        return counts

    def require_idle(self, object: str, *, beside: Collection[str] = ()) -> None:
        """Raise ``BusyError`` when an operation, other than the actions ``beside``, is under way on it."""
        for id in self._tasks:
            operation = self._all[id]
            if operation.state not in UNDER_WAY or operation.action in beside:
                continue
            if operation.object == object:
                raise BusyError(
                    f"{operation.action} is under way on {object}",
                    remedy=f"wait for operation {operation.id}, or cancel it",
                )

    async def start(
        self, action: str, object: str, actor: str, work: Work, *, beside: Collection[str] = ()
    ) -> Operation:
        """Begin an operation and return it, pending, once it is stored: who was told of it finds it again.

        ``beside``: which actions on the object it may run beside.

        Raises ``BusyError``, ``TooManyOperationsError`` or ``StoppingError``; then nothing has begun.
        """
        if self._closing:
            raise StoppingError("the service is being stopped", remedy="try again when it runs")
        if len(self._tasks) >= MAX_UNDER_WAY:
            raise TooManyOperationsError(f"{MAX_UNDER_WAY} operations are under way", remedy="wait for some")
        self.require_idle(object, beside=beside)
        operation = Operation(
            id=self._next_id(),
            action=action,
            object=object,
            actor=actor,
            state=OperationState.PENDING,
            progress=0,
            created_at=self._now(),
        )
        self._all[operation.id] = operation
        stored = asyncio.Event()
        run = self._run(operation.id, work, stored)
        self._tasks[operation.id] = asyncio.create_task(run, name=action)
        await stored.wait()
        return operation

    async def cancel(self, id: str) -> Operation:
        """Ask an operation to end; it undoes what it did. Raises ``OperationFinishedError``."""
        operation = self.get(id)
        task = self._tasks.get(id)
        if task is None:
            raise OperationFinishedError(f"the operation {id} is {operation.state} already")
        self._cancelled.add(id)
        task.cancel()
        return operation

    async def wait(self, id: str) -> Operation:
        """Wait for an operation's end."""
        if task := self._tasks.get(id):
            await asyncio.wait([task])
        return self.get(id)

    async def close(self, *, grace_s: float) -> None:
        """Take no more, wait for those under way, then interrupt them."""
        self._closing = True
        if tasks := list(self._tasks.values()):
            _, late = await asyncio.wait(tasks, timeout=grace_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    def _next_id(self) -> str:
        """Microseconds since 1970 in hexadecimal, always growing, so that ids sort by age."""
        now = int(self._now().timestamp() * 1e6)
        newest = int(next(reversed(self._all)), 16) if self._all else 0
        return f"{max(now, newest + 1):014x}"

    async def _run(self, id: str, work: Work, stored: asyncio.Event) -> None:
        end: dict[str, object]
        try:
            try:
                await self._put(self._all[id])
            finally:
                stored.set()
            self._emit(self._all[id], Outcome.STARTED)
            self._change(id, state=OperationState.RUNNING)
            result = await work(lambda percent, message: self._report(id, percent, message))
            end = {"state": OperationState.DONE, "progress": PERCENT_DONE}
            if isinstance(result, MoveResult):
                end["result"] = result
        except asyncio.CancelledError:
            end = _cancelled() if id in self._cancelled else _interrupted()
        except DuovisorError as error:
            end = _failed(error)
        except Exception:
            _log.exception("operation %s (%s) met a fault", id, self._all[id].action)
            end = _failed(InternalError("a fault of duovisor itself", remedy="see the service's log"))
        try:
            await self._finish(id, end)
        finally:
            self._tasks.pop(id, None)
            self._cancelled.discard(id)

    def _report(self, id: str, percent: int, message: str) -> None:
        progress = min(max(percent, self._all[id].progress), PERCENT_DONE)
        self._change(id, progress=progress, message=message[:MESSAGE_MAX])

    def _change(self, id: str, **changes: object) -> Operation:
        self._all[id] = self._all[id].model_copy(update=changes)
        return self._all[id]

    async def _finish(self, id: str, end: dict[str, object]) -> None:
        """Keep the end of an operation, then show it: what was seen to end never counts as interrupted."""
        operation = self._all[id].model_copy(update={"finished_at": self._now(), **end})
        try:
            await self._put(operation)
        except DuovisorError as error:
            _log.error("the end of operation %s cannot be kept: %s", id, error)
        self._all[id] = operation
        self._emit(operation, Outcome(operation.state.value))
        await self._trim()

    async def _put(self, operation: Operation) -> None:
        await self._store.put(PREFIX + operation.id, OPERATION.encode(operation))

    async def _trim(self) -> None:
        finished = [id for id, operation in self._all.items() if operation.state not in UNDER_WAY]
        for id in finished[: max(0, len(finished) - self._kept)]:
            del self._all[id]
            try:
                await self._store.delete(PREFIX + id)
            except DuovisorError as error:
                _log.error("the old operation %s stays on the disk: %s", id, error)

    def _emit(self, operation: Operation, outcome: Outcome) -> None:
        message = operation.error.message if operation.error else ""
        self._events.emit(operation.actor, operation.action, operation.object, outcome, message, operation.id)


def _failed(error: DuovisorError, state: OperationState = OperationState.FAILED) -> dict[str, object]:
    fault = OperationFault(code=error.code, message=error.message, remedy=error.remedy)
    return {"state": state, "error": fault}


def _cancelled() -> dict[str, object]:
    return _failed(OperationCancelledError("it was cancelled"), OperationState.CANCELLED)


def _interrupted() -> dict[str, object]:
    return _failed(
        OperationInterruptedError(
            "the service ended while it was under way", remedy="look at the object's state, then try again"
        ),
        OperationState.INTERRUPTED,
    )
