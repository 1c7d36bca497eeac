"""Tables, ages and sizes, as a person reads them."""

from __future__ import annotations

from datetime import UTC, datetime

import click
import pytest

from duovisor.cli.table import (
    format_age,
    format_mib,
    format_seconds,
    format_state,
    format_table,
    format_values,
)


def test_columns_are_as_wide_as_their_widest_cell_whatever_its_colour() -> None:
    text = format_table(
        ("NAME", "STATE", "N"), [("a", format_state("running"), "1"), ("long", "x", "22")], ["N"]
    )
    assert click.unstyle(text).splitlines() == [
        "NAME  STATE     N",
        "a     running   1",
        "long  x        22",
    ]


def test_further_lines_of_a_value_are_aligned() -> None:
    text = click.unstyle(format_values({"a": "one\ntwo", "long": "", "b": "x"}))
    assert text.splitlines() == ["a     one", "      two", "long  -", "b     x"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (0, "0 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7199, "119 min"),
        (7200, "2 h"),
        (172800, "2 d"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_ages_and_sizes() -> None:
    now = datetime(2026, 1, 1, 12, 0, 5, tzinfo=UTC)
    assert format_age("2026-01-01T12:00:00Z", now) == "5 s"
    assert format_age(None, now) == "-"
    assert [format_mib(mib) for mib in (512, 1024, 1536, 2048)] == ["512 MiB", "1 GiB", "1536 MiB", "2 GiB"]
