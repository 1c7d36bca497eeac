"""Reads what GRUB would start from its ``grub.cfg``; pure, and no more of its language than menus have.

Conditions, variables and submenus are not followed: of a menu as ``update-grub`` writes it, this is the entry
that starts by itself, unless the guest has asked for another one (``GRUB_DEFAULT=saved``). Source: the GRUB
manual, 6.1 and 16.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_DEFAULT = re.compile(r"""^set\s+default=["']?(\d{1,3})["']?$""")
_LINUX = frozenset({"linux", "linux16", "linuxefi"})
_INITRD = frozenset({"initrd", "initrd16", "initrdefi"})
_WORD = re.compile(r"""(?:[^\s"'\\]|\\.|"(?:[^"\\]|\\.)*"|'[^']*')+""")
_QUOTES = re.compile(r"""\\(.)|"((?:[^"\\]|\\.)*)"|'([^']*)'""")
_LINE_BYTES_MAX = 4096
_OF_GRUB = "BOOT_IMAGE="


class MenuEntry(NamedTuple):
    """Paths on the file system that GRUB calls its root, and the kernel's arguments."""

    kernel: str
    initrd: tuple[str, ...]
    arguments: str


def parse_menu(text: str) -> MenuEntry | None:
    """The entry that starts by itself; None where there is none that starts a Linux with a RAM disk."""
    chosen = 0
    entries: list[dict[str, list[str]]] = []  # a submenu counts, and is empty
    within: dict[str, list[str]] | None = None
    depth = 0
    for line in (line.strip() for line in text.splitlines()):
        if not line or line.startswith("#") or len(line) > _LINE_BYTES_MAX:
            continue
        if found := _DEFAULT.match(line):
            chosen = int(found[1])
        word = line.split(None, 1)[0]
        if line.endswith("{"):
            if not depth:
                within = {} if word == "menuentry" else None
                if word in ("menuentry", "submenu"):
                    entries.append(within if within is not None else {})
            depth += 1
        elif line == "}":
            depth = max(0, depth - 1)
        elif depth == 1 and within is not None:
            if word in _LINUX:
                within["linux"] = split_words(line)[1:]
            elif word in _INITRD:
                within["initrd"] = split_words(line)[1:]
    return None if chosen >= len(entries) else _build(entries[chosen])


def split_words(line: str) -> list[str]:
    """The words of a line, without what quotes them."""
    return [
        _QUOTES.sub(lambda part: part[1] or part[2] or part[3] or "", word) for word in _WORD.findall(line)
    ]


def _build(entry: dict[str, list[str]]) -> MenuEntry | None:
    if not entry.get("linux") or not entry.get("initrd"):
        return None
    kernel, *arguments = entry["linux"]
    kept = [word for word in arguments if "$" not in word and not word.startswith(_OF_GRUB)]
    return MenuEntry(kernel, tuple(entry["initrd"]), " ".join(f'"{w}"' if " " in w else w for w in kept))
