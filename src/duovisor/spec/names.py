"""How virtual machines, volumes and files may be called."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

NAME_MAX = 63
DEFAULT_POOL = "default"

_NAME = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$")


def check_name(name: str) -> str:
    """Return a virtual machine's name, or raise ``ValueError`` with what is wrong with it."""
    if not name:
        raise ValueError("a name must not be empty")
    if len(name) > NAME_MAX:
        raise ValueError(f"the name is {len(name)} characters long; {NAME_MAX} is the most")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is not a name: letters, digits, '-', '_' and '.' only, a letter or digit at both ends"
        )
    return name


def check_volume(text: str) -> str:
    """Return a volume as ``POOL/NAME``; a name alone is in the pool ``default``. Raises ``ValueError``."""
    pool, slash, name = text.partition("/")
    if not slash:
        pool, name = DEFAULT_POOL, text
    return f"{check_name(pool)}/{check_name(name)}"


def check_text(text: str) -> str:
    """Return a path or a part of a command line as it is. Raises ``ValueError`` for one that cannot be."""
    if "\0" in text:
        raise ValueError(f"{text!r} holds a zero byte, which no path or command line can")
    return text


Text = Annotated[str, AfterValidator(check_text)]
VolumeName = Annotated[str, AfterValidator(check_volume)]
