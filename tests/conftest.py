"""For every run: deals the tests out to workers, fails where a whole family was skipped (see families.py)."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from tests.families import Families, is_skipping_a_failure

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter
    from tests.scheduling import Scheduling
    from xdist.remote import Producer


class FamilyCounter:
    """The hooks that count; a test counts once, by its call or by what kept it from being called."""

    def __init__(self, families: Families) -> None:
        self._families = families

    @property
    def _fails_the_run(self) -> bool:
        return bool(self._families.list_skipped()) and is_skipping_a_failure(os.environ)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            reason = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else ""
            self._families.add(report.nodeid, report.outcome, reason)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus == pytest.ExitCode.OK and self._fails_the_run:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: TerminalReporter) -> None:
        terminalreporter.write_line("")
        for line in self._families.build_lines():
            terminalreporter.write_line(line)
        if self._fails_the_run:
            terminalreporter.write_line("a whole family was skipped: the run counts as failed", red=True)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(
        config, "workerinput"
    ):  # a worker sees a part of the tests, and its reports go to who counts
        config.pluginmanager.register(FamilyCounter(Families()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test an identifier of its own: of two that share one, workers would run one alone.

    With pytest 9.2, schemathesis's names (``test[GET /v1/vms]``) do not get into the identifiers.
    """
    for item in items:
        if item.parent is not None and not item.nodeid.endswith(item.name):
            item._id = type(item._id).parse(f"{item.parent.nodeid}::{item.name}")
    shared = [identifier for identifier, count in Counter(item.nodeid for item in items).items() if count > 1]
    if shared:
        raise pytest.UsageError(f"several tests have the identifier {shared[0]}")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    from tests.scheduling import Scheduling  # xdist may be turned off

    return Scheduling(config, log)
