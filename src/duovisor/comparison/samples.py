"""Raw samples on the disk: a comparison's folder, which a later run of the command goes on with.

``comparison.json`` says what is compared, where and how; ``samples.jsonl`` has a line for each step that was
done, written at its end. A line that an interruption cut off is not there: its step is done again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from duovisor.comparison.errors import ComparisonFolderError
from duovisor.comparison.facts import HostFacts
from duovisor.comparison.plan import Scale
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from duovisor.comparison.plan import Step

FORMAT = 1
HEADER, SAMPLES = "comparison.json", "samples.jsonl"


class Header(BaseModel):
    """What a comparison is of; ``started_at`` in seconds since 1970."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    scale: Scale
    host: HostFacts
    started_at: float


class Outcome(StrEnum):
    """How a step ended; ``CUT``: it was left out, or broken off, because the time was up."""

    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"
    CUT = "cut"


class Record(BaseModel):
    """One step that was done: ``values`` by name in the units that the names say, ``facts`` beside them.

    ``reason`` says why there are no values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    round: int
    measure: str
    design: Design
    outcome: Outcome
    seconds: float
    load: float
    values: dict[str, float] = {}
    facts: dict[str, Any] = {}
    reason: str = ""

    @property
    def key(self) -> str:
        return f"{self.round}/{self.measure}/{self.design}"


class SampleStore:
    """The folder of one comparison; ``records`` are in the order in which they were made."""

    def __init__(self, folder: Path, header: Header, records: list[Record]) -> None:
        self.folder = folder
        self.header = header
        self.records = records
        self._done = {record.key for record in records}

    def has(self, step: Step) -> bool:
        """Whether a step is done."""
        return step.key in self._done

    def add(self, record: Record) -> None:
        """Write a record to the disk. Raises ``OSError``."""
        line = record.model_dump_json() + "\n"
        with (self.folder / SAMPLES).open("a") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.records.append(record)
        self._done.add(record.key)


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Nobody else goes on with a folder's comparison meanwhile; the folder is made if there is none.

    Raises ``ComparisonFolderError`` when somebody is at it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ComparisonFolderError(f"cannot use {folder}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ComparisonFolderError(
                f"another comparison is at work in {folder}", remedy="wait for its end, or name a new folder"
            ) from None
        yield
    finally:
        os.close(descriptor)


def open_store(folder: Path, header: Header) -> SampleStore:
    """Begin a comparison in a folder, or go on with the one that it holds.

    Raises ``ComparisonFolderError`` when that is another one, or of another machine.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / HEADER).exists():
            if any(folder.iterdir()):
                raise ComparisonFolderError(f"{folder} has files in it", remedy="name a new or empty folder")
            fresh = folder / f"{HEADER}.new"
            fresh.write_text(header.model_dump_json(indent=2) + "\n")
            fresh.replace(folder / HEADER)
            return SampleStore(folder, header, [])
        store = load_store(folder)
    except OSError as error:
        raise ComparisonFolderError(f"cannot use {folder}: {error.strerror}") from error
    _check_same(folder, store.header, header)
    _cut_torn_line(folder / SAMPLES)
    return store


def load_store(folder: Path) -> SampleStore:
    """The comparison in a folder, to be read. Raises ``ComparisonFolderError``."""
    try:
        header = Header.model_validate_json((folder / HEADER).read_bytes())
        text = (folder / SAMPLES).read_bytes() if (folder / SAMPLES).exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        records = [Record.model_validate_json(line) for line in whole.splitlines()]
    except OSError as error:
        raise ComparisonFolderError(f"{folder} holds no comparison: {error.strerror}") from error
    except ValidationError as error:
        what = str(error.errors()[0]["msg"])
        raise ComparisonFolderError(
            f"{folder} holds no comparison of this version: {what}", remedy="name a new folder"
        ) from error
    return SampleStore(folder, header, records)


def _check_same(folder: Path, there: Header, here: Header) -> None:
    if there.scale != here.scale:
        raise ComparisonFolderError(
            f"{folder} holds a comparison with other options ({there.scale.name})",
            remedy="leave the options out to go on with it, or name a new folder",
        )
    if there.host.identity != here.host.identity:
        raise ComparisonFolderError(
            f"{folder} holds a comparison of another machine or of other programs: {there.host.describe()}",
            remedy="name a new folder",
        )


def _cut_torn_line(path: Path) -> None:
    """Take off what an interruption left of a line, or the next one would be spoiled with it."""
    if path.exists():
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
