"""Reads the one-value files of ``/sys`` and ``/proc``; what is missing or unreadable is the default."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def read_text(path: Path, default: str = "") -> str:
    """The content without surrounding white space."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:  # absent, forbidden, or EINVAL as a virtual NIC's "speed" answers
        return default


def read_int(path: Path, default: int = 0) -> int:
    """The content as a number, decimal or 0x…"""
    try:
        return int(read_text(path), 0)
    except ValueError:
        return default


def find_link_name(path: Path) -> str | None:
    """The last part of a symbolic link's target, as sysfs names drivers and groups; None without a link."""
    try:
        return path.readlink().name
    except OSError:
        return None


def list_folders(path: Path) -> list[Path]:
    """The folders (or links to them) in a folder, sorted by name; none when it does not exist."""
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_dir())
    except OSError:
        return []
