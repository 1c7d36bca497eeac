"""Reads what GRUB would start from its ``grub.cfg`` and ``grubenv``; pure, and no more than menus have.

Conditions are not followed: of a menu as ``update-grub`` writes it, this is the entry that starts by itself,
be it a number, a name or a saved one (``GRUB_DEFAULT``), also in submenus. What ``grub-reboot`` asks for is
left out: GRUB would forget it when it has been done once, and nothing is written here. Source: the GRUB
manual, 6.1, 15.2 and 16; what it falls back to is in ``grub-core/normal/menu.c``.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

_SET_DEFAULT = re.compile(r"""set\s+default=(.*)""")
_VARIABLE = re.compile(r"""\$\{(\w+)\}|\$(\w+)""")
_ONCE = "next_entry"
_NUMBER = re.compile(r"\d{1,3}")
_PATH = re.compile(r"(?<!>)>(?!>)")  # >> is the character itself
_LINUX = frozenset({"linux", "linux16", "linuxefi"})
_INITRD = frozenset({"initrd", "initrd16", "initrdefi"})
_ID = frozenset({"--id", "$menuentry_id_option", "${menuentry_id_option}"})
_WORD = re.compile(r"""(?:[^\s"'\\]|\\.|"(?:[^"\\]|\\.)*"|'[^']*')+""")
_QUOTES = re.compile(r"""\\(.)|"((?:[^"\\]|\\.)*)"|'([^']*)'""")
_ESCAPED = re.compile(r"\\(.)")
_LINE_BYTES_MAX = 4096
_OF_GRUB = "BOOT_IMAGE="
_ENVIRONMENT = "# GRUB Environment Block\n"


class MenuEntry(NamedTuple):
    """Paths on the file system that GRUB calls its root, and the kernel's arguments."""

    kernel: str
    initrd: tuple[str, ...]
    arguments: str


class _Block(NamedTuple):
    """What stands between braces; only entries and submenus have names, only these have entries in them."""

    names: tuple[str, ...]
    entries: list[_Block]
    commands: dict[str, list[str]]


def parse_menu(text: str, environment: str = "") -> MenuEntry | None:
    """The entry that starts by itself; None where there is none that starts a Linux with a RAM disk.

    ``environment`` is the content of ``grubenv``.
    """
    default, menu = _read(text)
    variables = parse_environment(environment)
    value = _VARIABLE.sub(lambda found: variables.get(found[1] or found[2], ""), default)
    chosen = _Block((), menu.entries, {})
    for name in _PATH.split(value):
        if chosen.entries:
            chosen = _choose(chosen.entries, name.replace(">>", ">"))
    return _build(chosen.commands)


def parse_environment(text: str) -> dict[str, str]:
    """The variables of a ``grubenv``, none if it is not one."""
    if not text.startswith(_ENVIRONMENT):
        return {}
    pairs = (line.partition("=") for line in text.splitlines() if not line.startswith("#"))
    return {name: _ESCAPED.sub(r"\1", value) for name, equals, value in pairs if equals}


def split_words(line: str) -> list[str]:
    """The words of a line, without what quotes them."""
    return [
        _QUOTES.sub(lambda part: part[1] or part[2] or part[3] or "", word) for word in _WORD.findall(line)
    ]


def _read(text: str) -> tuple[str, _Block]:
    """What the default is set to at last, and the menu."""
    default, menu = "", _Block((), [], {})
    within = [menu]
    for line in (line.strip() for line in text.splitlines()):
        if not line or line.startswith("#") or len(line) > _LINE_BYTES_MAX:
            continue
        word = line.split(None, 1)[0]
        if (found := _SET_DEFAULT.fullmatch(line)) and _ONCE not in line:
            default = "".join(split_words(found[1])[:1])
        elif line.endswith("{"):
            block = _Block((), [], {})
            if word in ("menuentry", "submenu"):
                block = _Block(_read_names(line), [], {})
                within[-1].entries.append(block)
            within.append(block)
        elif line == "}":
            within = within[:-1] or [menu]
        elif word in _LINUX:
            within[-1].commands["linux"] = split_words(line)[1:]
        elif word in _INITRD:
            within[-1].commands["initrd"] = split_words(line)[1:]
    return default, menu


def _read_names(line: str) -> tuple[str, ...]:
    """The title and, where it has one, the identifier."""
    _, *words = split_words(line)
    return (*words[:1], *(value for option, value in pairwise(words) if option in _ID))


def _choose(entries: list[_Block], name: str) -> _Block:
    """By its place or name; the first where there is none, as GRUB does."""
    if _NUMBER.fullmatch(name):
        place = int(name)
    else:
        place = next((place for place, each in enumerate(entries) if name in each.names), 0)
    return entries[place] if place < len(entries) else entries[0]


def _build(commands: dict[str, list[str]]) -> MenuEntry | None:
    if not commands.get("linux") or not commands.get("initrd"):
        return None
    kernel, *arguments = commands["linux"]
    kept = [word for word in arguments if "$" not in word and not word.startswith(_OF_GRUB)]
    return MenuEntry(kernel, tuple(commands["initrd"]), " ".join(f'"{w}"' if " " in w else w for w in kept))
