"""Fixtures of the channel's tests: a guest, and a watch over descriptors."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

import pytest
from tests.unit.channel.guest import Guest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def guest() -> Iterator[Guest]:
    made = Guest()
    yield made
    made.close()


def open_descriptors() -> set[str]:
    """What each descriptor of this process is."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except FileNotFoundError:
            continue  # the one that lists the folder
    return found


@pytest.fixture
def no_leak() -> Iterator[None]:
    """Fail the test if it leaves a descriptor open."""
    before = open_descriptors()
    yield
    if open_descriptors() - before:
        gc.collect()  # a slow step, for what only a cycle holds
    assert open_descriptors() - before == set()
