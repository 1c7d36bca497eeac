"""For every test: counts the families and fails a run in which a whole one was skipped (see families.py)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from tests.families import Families, is_skipping_a_failure

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

FAMILIES = pytest.StashKey[Families]()


class FamilyCounter:
    """The hooks that count; a test counts once, by its call or by what kept it from being called."""

    def __init__(self, families: Families) -> None:
        self._families = families

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            reason = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else ""
            self._families.add(report.nodeid, report.outcome, reason)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FAMILIES] = Families()
    config.pluginmanager.register(FamilyCounter(config.stash[FAMILIES]))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    skipped = session.config.stash[FAMILIES].list_skipped()
    if skipped and exitstatus == pytest.ExitCode.OK and is_skipping_a_failure(os.environ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: TerminalReporter, config: pytest.Config) -> None:
    families = config.stash[FAMILIES]
    terminalreporter.write_line("")
    for line in families.build_lines():
        terminalreporter.write_line(line)
    if families.list_skipped() and is_skipping_a_failure(os.environ):
        terminalreporter.write_line("a whole family was skipped: the run counts as failed", red=True)
