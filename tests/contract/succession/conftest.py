"""Fixtures of succession: a nursery for all tests of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.contract.succession.crew import Nursery

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    assert made.close() == ""
