"""Asks what may not answer, a folder of a server that is gone, so that nobody waits for it without an end.

A call to a file system that is mounted ``hard`` returns when its server does. Each pool is therefore asked in
a thread of its own, and not again before that thread has its answer: neither the threads that all share nor
the service's end wait for it.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from duovisor.controlling.storage.errors import PoolUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

ANSWER_S = 5.0


class Question(NamedTuple):
    """What was asked, and when (monotonic)."""

    answer: Future[Any]
    at: float


class Answers:
    """Questions by what they are about; about one thing always the same is asked."""

    def __init__(self, timeout_s: float = ANSWER_S) -> None:
        self._timeout_s = timeout_s
        self._asked: dict[str, Question] = {}

    async def ask(self, about: str, question: Callable[[], T], timeout_s: float | None = None) -> T:
        """The answer. Raises ``PoolUnavailableError`` when there is none in time, and what the question does.

        Who asks while an earlier question waits, waits for that, and not longer than who asked it.
        """
        asked = self._asked.get(about)
        if asked is None or asked.answer.done():
            asked = self._asked[about] = _ask(about, question)
        answer = asyncio.wrap_future(asked.answer)
        try:
            await asyncio.wait(
                {answer}, timeout=max(0.0, asked.at + (timeout_s or self._timeout_s) - time.monotonic())
            )
            if not answer.done():
                raise PoolUnavailableError(
                    f"{about} does not answer (for {time.monotonic() - asked.at:.0f} s)",
                    remedy="it can be used again when its server answers",
                )
            result: T = answer.result()
            return result
        finally:
            answer.cancel()


def _ask(about: str, question: Callable[[], object]) -> Question:
    answer: Future[object] = Future()
    answer.set_running_or_notify_cancel()  # who waits no more does not take it from others

    def find() -> None:
        try:
            answer.set_result(question())
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=find, name=about, daemon=True).start()
    return Question(answer, time.monotonic())
