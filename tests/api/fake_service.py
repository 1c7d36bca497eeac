"""The real service over the fake manager: ``python -m tests.api.fake_service [--config FILE]``."""

from __future__ import annotations

import sys

from tests.api.fake_manager import FakeVmManager

from duovisor.controlling.service.__main__ import run

if __name__ == "__main__":
    sys.exit(run(FakeVmManager))
