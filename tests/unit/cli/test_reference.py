"""The committed reference is what the commands say of themselves."""

from __future__ import annotations

from tests.style.source_tree import ROOT

from duovisor.cli.reference import build_reference


def test_the_reference_is_current() -> None:
    committed = (ROOT / "docs/cli.md").read_text()
    assert committed == build_reference(), "write it anew: python -m duovisor.cli.reference > docs/cli.md"
