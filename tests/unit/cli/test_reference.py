"""The committed reference is what the commands say of themselves."""

from __future__ import annotations

import subprocess
import sys

from tests.style.source_tree import ROOT


def test_the_reference_is_current() -> None:
    """In a process of its own: click keeps the help option of a command that another test has called."""
    said = subprocess.run([sys.executable, "-m", "duovisor.cli.reference"], capture_output=True, check=True)
    committed = (ROOT / "docs/cli.md").read_text()
    assert committed == said.stdout.decode(), "write it anew: python -m duovisor.cli.reference > docs/cli.md"
