"""``duovisor compare`` with real guests: what faults do, and a comparison that is killed and goes on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from duovisor.comparison.campaign import run_campaign
from duovisor.comparison.facts import build_facts
from duovisor.comparison.measures.context import Context
from duovisor.comparison.measures.faults import find_vmm
from duovisor.comparison.measures.table import MEASURES
from duovisor.comparison.own_network import try_own_network
from duovisor.comparison.plan import QUICK
from duovisor.comparison.report.page import build_page
from duovisor.comparison.report.result import build_result
from duovisor.comparison.rig import Rig
from duovisor.comparison.running import recover, run_step
from duovisor.comparison.samples import SAMPLES, Header, Outcome, SampleStore
from duovisor.comparison.sidelined import SidelinedService
from duovisor.comparison.sweeper import find_processes
from duovisor.directories import find_directories
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from duovisor.comparison.measures.context import Figures
    from duovisor.comparison.plan import Step
    from duovisor.controlling.images.image import Image
    from duovisor.directories import Directories
    from duovisor.hardware.capabilities import HostCapabilities

pytestmark = pytest.mark.vm

MONO, MICRO = Design.MONOLITHIC, Design.MICROKERNELIZED
TINY = QUICK.model_copy(update={"job_s": 0.3, "idle_s": 0.3, "load_s": 1.5})
COMMAND_S = 900.0
WAIT_S = 120.0


@pytest.fixture
async def context(
    folders: Directories, capabilities: HostCapabilities, probe_image: Image
) -> AsyncIterator[Context]:
    """A rig without anything booted yet; on a bridge where this host can have one."""
    with ExitStack() as stack:
        problem = stack.enter_context(try_own_network())
        service = SidelinedService(folders.runtime, folders.cache)
        async with Rig(folders, capabilities, probe_image, folders.state, no_network=problem) as rig:
            yield Context(TINY, rig, service)


async def test_each_design_meets_the_same_faults_as_what_it_is(context: Context) -> None:
    """Figures, authority, and a driver's fault: one guest lives on and one dies, and is there again."""
    for design in Design:
        read = (await MEASURES["storage.read_4k_qd8"](context, design)).values
        assert read["iops"] > 0
        assert read["p50_us"] <= read["p99_us"] <= read["p99_9_us"]
        assert read["cpu_us"] > 0
        assert ("cpu_us:storage driver" in read) is (design is MICRO)
    facts = {design: (await MEASURES["authority"](context, design)).facts for design in Design}
    for design, found in facts.items():
        assert found is not None
        (vmm,) = (process for process in found["processes"] if process["role"] == "vmm")
        assert (vmm["authority"]["capabilities"] == 0) is (design is MICRO) or os.geteuid() != 0
        assert bool(vmm["drivers"]) is (design is MONO)
    idle = (await MEASURES["idle"](context, MICRO)).values
    assert 5 < idle["pss_mib:storage driver"] < 200
    assert idle["pss_mib"] > idle["pss_mib:vmm"]

    if context.rig.no_network is None:
        card = await MEASURES["fault.network_driver"](context, MICRO)
        assert card.values["survived"] == 1
        assert card.facts is not None
        assert "driver partition" in card.facts["hurt"]
    fault = await MEASURES["fault.storage_driver"](context, MICRO)
    assert fault.values["survived"] == 1
    assert fault.values["errors"] == fault.values["flushed_writes_lost"] == 0
    update = (await MEASURES["update.driver"](context, MICRO)).values
    assert update["errors"] == 0
    assert 0 < update["pause_ms"]

    fault = await MEASURES["fault.storage_driver"](context, MONO)
    assert fault.values["survived"] == fault.values["flushed_writes_lost"] == 0
    assert fault.facts is not None
    assert "thread" in fault.facts["hurt"]
    assert fault.facts["said"] == "its VMM was killed by SIGSEGV"
    assert not (await context.rig.guest(MONO)).has_ended
    await check_death(context)


async def check_death(context: Context) -> None:
    """A guest that dies in the middle of a step is told of, and the others are measured all the same."""
    scale = TINY.model_copy(update={"sections": ("processor",), "rounds": 2})
    store = SampleStore(
        context.rig.folder,
        Header(scale=scale, host=build_facts(context.rig.capabilities), started_at=1.0),
        [],
    )
    killed: list[Step] = []

    async def run_or_kill(step: Step) -> Figures:
        if step.design is MICRO or killed:
            return await run_step(context, step)
        killed.append(step)
        pid = find_vmm(await context.rig.guest(MONO))
        long = context._replace(scale=scale.model_copy(update={"job_s": 60.0}))
        step_task = asyncio.create_task(run_step(long, step))
        await asyncio.sleep(0.2)
        os.kill(pid, signal.SIGKILL)
        return await step_task

    await run_campaign(store, run_or_kill, partial(recover, context), lambda _: None)
    outcomes = [(record.round, record.design, record.outcome) for record in store.records]
    assert outcomes == [
        (1, MONO, Outcome.FAILED), (1, MICRO, Outcome.DONE),
        (2, MICRO, Outcome.DONE), (2, MONO, Outcome.DONE),
    ]  # fmt: skip
    page = build_page(build_result(store))
    assert "processor, monolithic, round 1: the guest died: its VMM was killed by SIGKILL" in page


def start(folders: Directories, output: Path) -> subprocess.Popen[bytes]:
    """The smallest comparison that there is, as a program of its own."""
    environment = {
        **os.environ,
        "DUOVISOR_STATE_DIR": str(folders.state),
        "DUOVISOR_RUNTIME_DIR": str(folders.runtime),
        "DUOVISOR_CACHE_DIR": str(folders.cache),
    }
    argv = [sys.executable, "-m", "duovisor", "compare", "--output", str(output)]
    if not output.exists():
        argv += ["--only", "processor", "--rounds", "1", "--seconds", "0.2"]
    return subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_what_was_killed_leaves_nothing_and_goes_on(folders: Directories, probe_image: Image) -> None:
    """``kill -9`` in the middle; the folder of images is lent so that none is built again."""
    (folders.state / "images").symlink_to(find_directories().images)
    output = folders.state / "compared"
    with start(folders, output) as killed:
        deadline = time.monotonic() + COMMAND_S
        while not (output / SAMPLES).exists():
            assert killed.poll() is None, killed.stdout.read() if killed.stdout else b""
            assert time.monotonic() < deadline
            time.sleep(0.02)
        roots = find_roots(killed.pid)
        os.kill(killed.pid, signal.SIGKILL)
    assert roots
    deadline = time.monotonic() + WAIT_S
    while any(root.exists() or find_processes(root) for root in roots):
        assert time.monotonic() < deadline, "the sweeper left something"
        time.sleep(0.02)
    kept = (output / SAMPLES).read_text()

    with start(folders, output) as resumed:
        said, _ = resumed.communicate(timeout=COMMAND_S)
    assert resumed.returncode == 0, said
    assert b"going on with" in said
    samples = (output / SAMPLES).read_text()
    assert samples.startswith(kept[: kept.rfind("\n") + 1])
    records = [json.loads(line) for line in samples.splitlines()]
    assert [(record["design"], record["outcome"]) for record in records] == [(MONO, "done"), (MICRO, "done")]
    assert "1 sample of each are too few" in (output / "report.json").read_text()
    assert "<h1>" in (output / "report.html").read_text()
    assert not list(folders.state.glob("comparison-*"))
    (folders.state / "images").unlink()


def find_roots(pid: int) -> list[Path]:
    """The folders that the comparison's sweeper watches over: its last arguments."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
        if "duovisor.comparison.sweeper" in words:
            return [Path(word) for word in words[words.index("duovisor.comparison.sweeper") + 1 :] if word]
    return []
