"""``duovisor disk-key new``."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from click.testing import CliRunner

from duovisor.cli.disk_key import command
from duovisor.cli.exit_codes import exit_code_of
from duovisor.controlling.errors import KeyFileError

if TYPE_CHECKING:
    from pathlib import Path


def test_a_new_key_is_its_owners_alone_and_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "disk.key"
    done = CliRunner().invoke(command, ["new", str(file)])
    assert done.exit_code == 0
    assert f"wrote {file}" in done.output
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    key = file.read_bytes()
    assert len(set(key[:32])) > 16
    assert key[:32] != key[32:]
    again = CliRunner().invoke(command, ["new", str(file)])
    assert isinstance(again.exception, KeyFileError)
    assert exit_code_of(again.exception) == 2
    assert file.read_bytes() == key
