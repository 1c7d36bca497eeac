"""Reads the first-day guide: what is typed in it, and what that prints there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

PROMPT, ANYTHING = "$ ", "…"
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Step(NamedTuple):
    """A command line, and the lines that it prints; ``…`` stands for anything, alone in a line for lines."""

    command: str
    printed: tuple[str, ...]


def parse_guide(text: str) -> Iterator[Step]:
    """The steps of a guide, in their order."""
    for block in _BLOCK.findall(text):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *printed = part.splitlines()
            yield Step(command, tuple(printed))


def build_pattern(printed: tuple[str, ...]) -> re.Pattern[str]:
    """What a command's output must match as a whole, runs of spaces being one."""
    lines = []
    for line in printed:
        if line == ANYTHING:
            lines.append(r"(?:[^\n]*\n)+")
        else:
            lines.append("[^\n]*".join(re.escape(part) for part in squeeze(line).split(ANYTHING)) + "\n")
    return re.compile("".join(lines))


def squeeze(line: str) -> str:
    """A line without what only aligns it."""
    return " ".join(line.split())


def matches(printed: tuple[str, ...], output: str) -> bool:
    """Whether a command printed what the guide says."""
    lines = [squeeze(line) + "\n" for line in output.splitlines() if line.strip()]
    return build_pattern(printed).fullmatch("".join(lines)) is not None
