"""Fuzz what a front end sends: messages, descriptors, and memory behind them.

``python tests/fuzz/fuzz_messages.py -max_total_time=60``; see ``engine``.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

if __name__ == "__main__":
    from tests.fuzz.engine import fuzz

    fuzz("messages")
