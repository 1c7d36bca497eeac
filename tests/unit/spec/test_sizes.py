"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duovisor.spec.sizes import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512),
        (512, 512),
        ("1k", 1 << 10),
        ("512M", 512 << 20),
        ("2G", 2 << 30),
        ("2GB", 2 << 30),
        (" 1.5 GiB ", 3 << 29),
        ("1t", 1 << 40),
        ("0.5k", 512),
        ("9007199254740993", 9007199254740993),  # 2**53 + 1: a float would lose it
    ],
)
def test_reads_sizes(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


def test_a_bare_number_counts_in_the_default_unit() -> None:
    assert parse_bytes("512", default_unit="m") == 512 << 20
    assert parse_bytes("512k", default_unit="m") == 512 << 10


@pytest.mark.parametrize(
    "text",
    [
        "",
        "M",
        "-1",
        "-1M",
        "1,5G",
        "1e3",
        "1P",
        "0x10",
        "1 2",
        "1.",
        ".5G",
        "inf",
        "nan",
        "512M\n;",
        "9" * 400,
        "9" * 5000,
        "\u0661M",
        "0.3",
    ],
)
def test_refuses_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a"):
        parse_bytes(text)


@given(st.integers(0, 1 << 50), st.sampled_from(["", "k", "m", "g", "t"]))
def test_every_whole_number_reads_back(number: int, unit: str) -> None:
    assert parse_bytes(f"{number}{unit}") == number << {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}[unit]


@given(st.text(max_size=20))
def test_any_text_is_a_size_or_a_value_error(text: str) -> None:
    try:
        size = parse_bytes(text)
    except ValueError:
        return
    assert size >= 0
    assert text.strip()[0].isdecimal()


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1 << 20, "1 MiB"),
        (1000 << 20, "1000 MiB"),
        (3 << 29, "1.5 GiB"),
        (5 << 40, "5 TiB"),
    ],
)
def test_writes_sizes(size: int, text: str) -> None:
    assert format_bytes(size) == text
