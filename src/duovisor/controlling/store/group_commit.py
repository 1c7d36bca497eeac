"""Group commit: writes that arrive while the disk is busy share the next wait for it.

The service has one event loop. It must not stand still for a disk, and a disk that takes 8 ms to sync must
not mean 125 writes per second; so one thread writes, and takes everything that has gathered each time.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from duovisor.controlling.store.engine import Changed, Writer

T = TypeVar("T")

GROUP_MAX = 256


class GroupCommit:
    """Has actions committed in the order of their arrival, in groups; belongs to one event loop.

    ``commit`` runs in the thread and gives each action's result or error; ``announce`` runs in the loop.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[Callable[[Writer], object]]], tuple[list[object], Changed]],
        announce: Callable[[Changed], None],
    ) -> None:
        self._commit = commit
        self._announce = announce
        self._waiting: list[tuple[Callable[[Writer], object], asyncio.Future[Any]]] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._task: asyncio.Task[None] | None = None

    async def submit(self, action: Callable[[Writer], T]) -> T:
        """Have an action committed and return its result, or raise its error."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._waiting.append((action, future))
        if self._task is None:
            self._task = loop.create_task(self._run())
        return await future

    async def close(self) -> None:
        """Commit what waits, then end the thread."""
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                group, self._waiting = self._waiting[:GROUP_MAX], self._waiting[GROUP_MAX:]
                await self._commit_group(loop, group)
        finally:
            self._task = None

    async def _commit_group(
        self,
        loop: asyncio.AbstractEventLoop,
        group: list[tuple[Callable[[Writer], object], asyncio.Future[Any]]],
    ) -> None:
        try:
            results, changed = await loop.run_in_executor(
                self._thread, self._commit, [action for action, _ in group]
            )
        except Exception as error:
            results = [error] * len(group)
        else:
            self._announce(changed)
        for (_, future), result in zip(group, results, strict=True):
            if future.done():  # whoever waited was cancelled
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
