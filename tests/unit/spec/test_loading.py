"""Specification files: three formats that mean the same, and every way in which a file can be wrong."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import pytest

from duovisor.spec.errors import SpecError, SpecFileError
from duovisor.spec.loading import (
    MAX_FAULTS,
    MAX_SPEC_BYTES,
    build_spec,
    load_document,
    parse_document,
    shorten,
)

if TYPE_CHECKING:
    from pathlib import Path

DOCUMENT = {
    "name": "web",
    "design": "microkernelized",
    "memory": "2G",
    "disks": [{"path": "/srv/web.raw", "serial": "root"}],
    "nics": [{"forward": ["8080:80"]}],
}
TOML = """
name = "web"
design = "microkernelized"
memory = "2G"
[[disks]]
path = "/srv/web.raw"
serial = "root"
[[nics]]
forward = ["8080:80"]
"""
YAML = """
name: web
design: microkernelized
memory: 2G
disks:
  - {path: /srv/web.raw, serial: root}
nics:
  - forward: ["8080:80"]
"""


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.toml", TOML), ("a.yaml", YAML), ("a.yml", YAML), ("a.json", json.dumps(DOCUMENT)), ("a.TOML", TOML)],
)
def test_the_formats_mean_the_same(tmp_path: Path, name: str, text: str) -> None:
    document = load_document(write(tmp_path, name, text))
    assert document == DOCUMENT
    assert build_spec(document) == build_spec(DOCUMENT)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.toml", "name = ", "a.toml: not valid TOML: "),
        ("a.json", "{", "a.json: not valid JSON: "),
        ("a.yaml", "a: [", "a.yaml: not valid YAML: "),
        ("a.json", "[" * 100_000, "not valid JSON: maximum recursion depth"),
        ("a.yaml", "[" * 3_000, "not valid YAML: maximum recursion depth"),
        ("a.toml", "a=" + "[" * 10_000, "not valid TOML: "),
        ("a.toml", "cpus = " + "1" * 5000, "not valid TOML: "),
        ("a.json", '{"cpus": ' + "1" * 5000 + "}", "not valid JSON: "),
        ("a.yaml", "cpus: " + "1" * 5000, "not valid YAML: "),
        ("a.yaml", "a: 2001-99-99", "not valid YAML: "),
        ("a.yaml", "a: !!bool nonsense", "not valid YAML: "),
        ("a.yaml", "a: !!timestamp nonsense", "not valid YAML: "),
        ("a.yaml", "a: !!int ''", "not valid YAML: "),
        ("a.yaml", "a: !!python/object/apply:os.system [id]", "YAML: could not determine a constructor"),
        ("a.yaml", "a: 1\n---\nb: 2", "not valid YAML: "),
        ("a.yaml", "- name", "a.yaml holds no mapping"),
        ("a.yaml", "", "a.yaml holds no mapping"),
        ("a.json", "null", "a.json holds no mapping"),
        ("a.toml", b"name = '\xff\xfe'", "a.toml is not text in UTF-8"),
        ("a.toml", b"\x00\x01", "not valid TOML: "),
        ("a.txt", "name: web", "cannot tell the format from the suffix '.txt'"),
        ("a", "name: web", "cannot tell the format from the suffix ''"),
        ("a.toml", " " * (MAX_SPEC_BYTES + 1), "a.toml is larger than 1 MiB"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, str) else "bytes",
)
def test_a_wrong_file_is_named_in_one_line(
    tmp_path: Path, name: str, content: str | bytes, said: str
) -> None:
    with pytest.raises(SpecFileError) as caught:
        load_document(write(tmp_path, name, content))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_missing_file_and_a_directory_are_named(tmp_path: Path) -> None:
    with pytest.raises(SpecFileError, match=r"cannot read .*/none\.toml: No such file or directory"):
        load_document(tmp_path / "none.toml")
    with pytest.raises(SpecFileError, match="Is a directory"):
        load_document(tmp_path)


def test_a_file_without_an_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "zero.toml").symlink_to("/dev/zero")
    with pytest.raises(SpecFileError, match="larger than 1 MiB"):
        load_document(tmp_path / "zero.toml")
    sparse = write(tmp_path, "sparse.toml", "")
    os.truncate(sparse, 1 << 40)
    with pytest.raises(SpecFileError, match="larger than 1 MiB"):
        load_document(sparse)


def build_laughs(template: str) -> str:
    """Twelve levels of nine aliases each: 9 ** 12 nodes."""
    levels = [template.format(",".join([f"*a{level - 1}"] * 9)) for level in range(1, 13)]
    return "a0: &a0 {k: v}\n" + "".join(f"a{n}: &a{n} {text}\n" for n, text in enumerate(levels, 1))


@pytest.mark.parametrize("template", ["[{}]", "{{<<: [{}]}}"], ids=["aliases", "merge keys"])
def test_billion_laughs_do_not_hang(template: str) -> None:
    started = time.monotonic()
    with pytest.raises(SpecFileError, match=r"aliases \(\*name\) are not allowed"):
        parse_document(build_laughs(template), ".yaml")
    assert time.monotonic() - started < 5


def test_anchors_without_aliases_are_harmless() -> None:
    assert parse_document("name: &n web", ".yaml") == {"name": "web"}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"name": "a", "cpu": 2}, "unknown field 'cpu'"),
        ({"name": "a", "disks": [{"pth": "/x"}]}, "unknown field 'disks.0.pth'"),
        ({"name": "a", "cpus": 0}, "cpus: input should be greater than or equal to 1 (got 0)"),
        ({"name": "a", "cpus": "many"}, "cpus: input should be a valid integer"),
        ({}, "name: field required"),
        ({"name": "a", "design": "hybrid"}, "'monolithic' or 'microkernelized' (got 'hybrid')"),
        ({"name": "a", "disks": "x.raw"}, "disks: input should be a valid tuple (got 'x.raw')"),
        ({"name": "a", 5: 6}, "keys should be strings"),
    ],
)
def test_a_wrong_document_names_field_and_value(document: dict[str, object], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        build_spec(document)
    assert said in str(caught.value)


def test_many_faults_are_counted_not_listed() -> None:
    document = {"name": "a", **{f"field{n}": n for n in range(1000)}}
    with pytest.raises(SpecError) as caught:
        build_spec(document)
    assert str(caught.value).endswith(f"; and {1000 - MAX_FAULTS} more faults")
    assert len(str(caught.value)) < 300


def test_a_long_value_is_shortened() -> None:
    for document in ({"name": "a", "k" * 5000: 1}, {"name": "a", "memory": "9" * 5000}, {"name": "a" * 5000}):
        with pytest.raises(SpecError) as caught:
            build_spec(document)
        assert len(str(caught.value)) < 400
    assert shorten("x" * 100) == "x" * 30 + "…" + "x" * 15
    assert shorten("x" * 60) == "x" * 60
