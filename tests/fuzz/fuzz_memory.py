"""Fuzz which addresses lead where, in regions, logs and translations.

``python tests/fuzz/fuzz_memory.py -max_total_time=60``; see ``engine``.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

if __name__ == "__main__":
    from tests.fuzz.engine import fuzz

    fuzz("memory")
