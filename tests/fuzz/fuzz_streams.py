"""Fuzz what a VMM saves: migration streams, read and translated.

``python tests/fuzz/fuzz_streams.py -max_total_time=60``; see ``engine``.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

if __name__ == "__main__":
    from tests.fuzz.engine import fuzz

    fuzz("streams")
