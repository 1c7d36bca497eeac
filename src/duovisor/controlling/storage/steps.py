"""Steps that are done to their end though their task is cancelled meanwhile: a thread cannot be stopped."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Call it in a thread. A cancellation is raised when it has ended, so that it can be undone."""
    task = asyncio.create_task(asyncio.to_thread(function, *arguments, **options))
    cancelled = await _wait(task)
    result = task.result()
    if cancelled:
        raise asyncio.CancelledError
    return result


async def commit(work: Coroutine[Any, Any, T]) -> T:
    """Do what cannot be given up any more: a cancellation is too late, and forgotten."""
    task = asyncio.create_task(work)
    if await _wait(task) and (current := asyncio.current_task()) is not None:
        current.uncancel()
    return task.result()


async def _wait(task: asyncio.Task[T]) -> bool:
    """Wait for a task; whether this one was cancelled meanwhile."""
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    return cancelled
