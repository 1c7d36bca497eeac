"""Preconditions, metrics text, process usage, configuration: the pure parts of the service."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duovisor.controlling.service.config import ServiceConfig, build_config, load_config
from duovisor.controlling.service.errors import (
    PreconditionRequiredError,
    RequestInvalidError,
    ServiceConfigError,
)
from duovisor.controlling.service.metrics import (
    Metric,
    RequestCounts,
    RequestKey,
    Sample,
    build_text,
)
from duovisor.controlling.service.process_usage import find_usage, parse_stat
from duovisor.controlling.service.replies import build_etag, parse_if_match

if TYPE_CHECKING:
    from pathlib import Path


@given(st.integers(0, 10**18 - 1))
def test_an_etag_is_read_as_it_was_written(revision: int) -> None:
    assert parse_if_match(build_etag(revision), 0) == revision


@given(st.text().filter(lambda text: text != "*" and not text.strip('"').isdecimal()))
def test_nothing_else_is_an_etag(text: str) -> None:
    with pytest.raises(RequestInvalidError):
        parse_if_match(text, 1)


def test_a_precondition_is_needed_and_a_star_stands_for_what_is() -> None:
    assert parse_if_match("*", 17) == 17
    with pytest.raises(PreconditionRequiredError):
        parse_if_match(None, 17)


def test_metrics_are_written_as_prometheus_reads_them() -> None:
    metric = Metric("m", "gauge", "Help.", [Sample({}, 1), Sample({"a": 'x"\\\n'}, 0.5)])
    assert build_text([metric]) == ('# HELP m Help.\n# TYPE m gauge\nm 1\nm{a="x\\"\\\\\\n"} 0.5\n')


def test_request_counts_are_cumulative() -> None:
    counts = RequestCounts()
    key = RequestKey("GET", "/v1/vms", 200)
    for duration_s in (0.001, 0.01, 0.01, 99.0):
        counts.observe(key, duration_s)
    values = {(sample.suffix, sample.labels.get("le")): sample.value for sample in counts.metric().samples}
    assert values["_bucket", "0.005"] == 1
    assert values["_bucket", "0.02"] == 3
    assert values["_bucket", "+Inf"] == values["_count", None] == 4
    assert values["_sum", None] == pytest.approx(99.021)


def test_usage_survives_a_name_with_spaces_and_parentheses() -> None:
    fields = ["S", *["0"] * 10, "150", "50", *["0"] * 8, "3", *["0"] * 20]
    usage = parse_stat(f"7 (a ) (b) {' '.join(fields)}")
    assert usage.resident_bytes == 3 * os.sysconf("SC_PAGE_SIZE")
    assert usage.cpu_s == 200 / os.sysconf("SC_CLK_TCK")


def test_usage_of_this_process_and_of_none() -> None:
    mine = find_usage(os.getpid())
    assert mine is not None
    assert mine.resident_bytes > 1 << 20
    assert find_usage(2**22 + 1) is None  # above pid_max of every kernel


def test_an_empty_configuration_is_a_good_one(tmp_path: Path) -> None:
    file = tmp_path / "duovisord.toml"
    file.touch()
    assert load_config(file) == ServiceConfig()


def test_a_private_key_that_everybody_may_read_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch()
    key.chmod(0o644)
    file = tmp_path / "duovisord.toml"
    file.write_text(f'[https]\naddress = "::1"\ncertificate = "c"\nkey = "{key}"\n')
    with pytest.raises(ServiceConfigError, match="everybody"):
        load_config(file)
    key.chmod(0o640)
    https = load_config(file).https
    assert https is not None
    assert (https.address, https.port) == ("::1", 8443)


@pytest.mark.parametrize(
    "document", [{"history": {"events": 1}}, {"https": {"address": "127.0.0.1"}}, {"group": ""}]
)
def test_what_cannot_be_done_is_refused(document: dict[str, object]) -> None:
    with pytest.raises(ServiceConfigError):
        build_config(document)
