"""Settings of a definition, and the editor: retried while refused, given up by leaving it as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from duovisor.cli.definition import apply_setting, parse_definition, render_definition
from duovisor.cli.editor import edit_document
from duovisor.client.errors import ApiError
from duovisor.errors import DuovisorError
from duovisor.spec.errors import SpecError

if TYPE_CHECKING:
    from pathlib import Path


def build() -> dict[str, Any]:
    return {
        "spec": {
            "name": "web",
            "memory_mib": 512,
            "disks": [{"path": "/a", "cache": "writeback"}],
            "kernel": None,
        },
        "autostart": {"enabled": False, "order": 0, "delay_s": 0.0},
    }


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("cpus=4", ("spec", "cpus"), 4),
        ("design=microkernelized", ("spec", "design"), "microkernelized"),
        ("disks.0.cache=none", ("spec", "disks", 0, "cache"), "none"),
        ("disks.0.read_only=true", ("spec", "disks", 0, "read_only"), True),
        ("autostart.enabled=true", ("autostart", "enabled"), True),
        ("kernel=", ("spec", "kernel"), None),
        ("nics=[{network: user}]", ("spec", "nics"), [{"network": "user"}]),
    ],
)
def test_settings(setting: str, path: tuple[Any, ...], value: Any) -> None:
    document = build()
    apply_setting(document, setting)
    found: Any = document
    for key in path:
        found = found[key]
    assert found == value


def test_memory_takes_the_place_of_memory_mib() -> None:
    document = build()
    apply_setting(document, "memory=1G")
    assert document["spec"]["memory"] == "1G"
    assert "memory_mib" not in document["spec"]


@pytest.mark.parametrize(
    "setting", ["cpus", "=4", "disks.1.cache=none", "disks.x=1", "a.b=1", "kernel.path=/k"]
)
def test_settings_that_lead_nowhere(setting: str) -> None:
    document = build()
    with pytest.raises(SpecError):
        apply_setting(document, setting)
    assert document == build()


def test_a_definition_survives_being_text() -> None:
    assert parse_definition(render_definition(build())) == build()


class Store:
    """Refuses memory below 100 as the service would; ``stale``: somebody else was faster."""

    def __init__(self, *, stale: bool = False) -> None:
        self.written: list[dict[str, Any]] = []
        self.stale = stale

    def write(self, document: dict[str, Any]) -> dict[str, Any]:
        if self.stale:
            raise ApiError("revision-conflict", "changed meanwhile")
        if document["spec"]["memory_mib"] < 100:
            raise ApiError("request-invalid", "too little memory")
        self.written.append(document)
        return document


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file to put shell commands into, each line for one call of the editor; ``$f`` is the text."""
    script = tmp_path / "editor"
    lines = tmp_path / "lines"
    script.write_text(
        f'#!/bin/sh\nf=$1; cp "$f" {tmp_path}/seen; eval "$(head -n1 {lines})"; sed -i 1d {lines}\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("VISUAL", str(script))
    return lines


def test_an_edit(editor: Path) -> None:
    editor.write_text("sed -i s/512/1024/ $f\n")
    store = Store()
    edit_document("web", build(), store.write)
    assert [document["spec"]["memory_mib"] for document in store.written] == [1024]


def test_what_is_refused_comes_back_with_the_reason(editor: Path, tmp_path: Path) -> None:
    editor.write_text("sed -i s/512/64/ $f\nsed -i s/64/128/ $f\n")
    store = Store()
    edit_document("web", build(), store.write)
    assert "# refused: too little memory" in (tmp_path / "seen").read_text()
    assert [document["spec"]["memory_mib"] for document in store.written] == [128]


def test_a_text_that_is_no_definition_comes_back_too(editor: Path) -> None:
    editor.write_text("echo '- x' > $f\n:\n")
    with pytest.raises(DuovisorError, match="no definition"):
        edit_document("web", build(), Store().write)


def test_leaving_it_as_it_is_gives_up(editor: Path) -> None:
    editor.write_text(":\n")
    store = Store()
    assert edit_document("web", build(), store.write) is None
    editor.write_text("sed -i s/512/64/ $f\n:\n")
    with pytest.raises(ApiError, match="too little memory"):
        edit_document("web", build(), store.write)
    assert store.written == []


def test_a_stale_edit_is_kept(
    editor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    editor.write_text("sed -i s/512/1024/ $f\n")
    with pytest.raises(ApiError, match="changed meanwhile"):
        edit_document("web", build(), Store(stale=True).write)
    (kept,) = tmp_path.glob("duovisor-web-*.yaml")
    assert str(kept) in capsys.readouterr().err
    assert parse_definition(kept.read_text())["spec"]["memory_mib"] == 1024


def test_editors_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISUAL", "/no/such/editor --wait")
    with pytest.raises(DuovisorError, match="cannot start the editor"):
        edit_document("web", build(), Store().write)
    monkeypatch.setenv("VISUAL", "false")
    with pytest.raises(DuovisorError, match="exited with 1"):
        edit_document("web", build(), Store().write)
