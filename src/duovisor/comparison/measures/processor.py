"""Work for the guest's processor alone: a control, which no design of drivers should change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.comparison.errors import MeasureError
from duovisor.comparison.measures.context import Context, Figures

if TYPE_CHECKING:
    from duovisor.spec.vm import Design

# the uptime in hundredths of a second, without a fork: 12.34 → 1234
_SCRIPT = """
now() {{ read -r up _ </proc/uptime; up=${{up%.*}}${{up#*.}}; }}
now; began=$up; n=0
while [ $((up - began)) -lt {hundredths} ]; do
    i=0; while [ $i -lt 200 ]; do i=$((i + 1)); done
    n=$((n + 1)); now
done
echo $n $((up - began))
"""
STEPS = 200


async def measure_processor(context: Context, design: Design) -> Figures:
    """How many steps of a shell's loop the guest does in a second, by its own clock."""
    guest = await context.rig.guest(design)
    script = _SCRIPT.format(hundredths=max(10, round(context.scale.job_s * 100)))
    return Figures({"steps_per_s": parse_count(await guest.output(script))})


def parse_count(printed: str) -> float:
    """Steps a second, of rounds and hundredths of a second. Raises ``MeasureError``."""
    try:
        rounds, hundredths = map(int, printed.split())
        return rounds * STEPS / (hundredths / 100)
    except (ValueError, ZeroDivisionError) as error:
        raise MeasureError(f"the guest counted {printed.strip()[:80]!r}") from error
