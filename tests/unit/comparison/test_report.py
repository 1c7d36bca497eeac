"""What the report says of samples with known answers."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest
from tests.unit.comparison.synthetic import MICRO, MONO, build_host, build_store

from duovisor.comparison.plan import QUICK, SECTIONS
from duovisor.comparison.report.events import EVENTS
from duovisor.comparison.report.limits import HONESTY, list_limits
from duovisor.comparison.report.page import build_page
from duovisor.comparison.report.plots import build_plots
from duovisor.comparison.report.quantities import QUANTITIES
from duovisor.comparison.report.result import Result, build_result
from duovisor.comparison.report.sentences import judge_control, state, summarize_result, tell_event
from duovisor.comparison.report.wording import format_span
from duovisor.comparison.report.writing import write_report
from duovisor.comparison.samples import Outcome
from duovisor.spec.vm import Accelerator

if TYPE_CHECKING:
    from pathlib import Path

PICTURES = 23  # a chart for each entry of report/plots.py, and two figures
SVG = re.compile(r"<svg .*?</svg>", re.DOTALL)


def build(tmp_path: Path, **options: object) -> Result:
    return build_result(build_store(tmp_path, **options))  # type: ignore[arg-type]


def find(result: Result, key: str) -> str:
    row = result.find_row(key)
    assert row is not None
    return state(row)


def test_every_quantity_is_in_a_whole_comparison(tmp_path: Path) -> None:
    result = build(tmp_path)
    missing = {quantity.key for quantity in QUANTITIES} - {row.quantity.key for row in result.rows}
    assert missing == set()
    assert {row.measure for row in result.events} == {kind.measure for kind in EVENTS}


def test_equal_designs_are_said_to_be_equal(tmp_path: Path) -> None:
    result = build(tmp_path)
    assert all(row.winner is None for row in result.rows)
    assert "no difference could be shown (ratio" in find(result, "storage.read_4k_qd1.iops")
    assert summarize_result(result)[0] == "In storage, no difference between the designs could be shown."
    assert judge_control(result).endswith("shows no difference, as it should.")


def test_each_side_wins_what_it_is_better_at(tmp_path: Path) -> None:
    factors = {
        "storage.read_4k_qd32.iops": 1.30,
        "storage.read_4k_qd1.iops": 0.80,
        "storage.read_4k_qd1.p99_us": 1.5,
        "boot.boot_s": 0.5,
        "boot.vmm_start_s": 2.0,
        "network.to_guest.mbit_s": 3.0,
    }
    result = build(tmp_path, factors=factors, noise=0.001)
    winners = {row.quantity.key: row.winner for row in result.rows if row.winner is not None}
    assert winners == {
        "storage.read_4k_qd32.iops": MICRO,
        "storage.read_4k_qd1.iops": MONO,
        "boot.boot_s": MICRO,
        "boot.vmm_start_s": MONO,
        "network.to_guest.mbit_s": MICRO,
    }  # the one latency of 28 is not enough for five rounds
    assert "microkernelized is better: 30 % more" in find(result, "storage.read_4k_qd32.iops")
    assert "monolithic is better: 25 % more" in find(result, "storage.read_4k_qd1.iops")
    assert "microkernelized is better: 50 % less" in find(result, "boot.boot_s")
    assert "microkernelized is better: 3.0 times as much" in find(result, "network.to_guest.mbit_s")
    assert "Mann-Whitney U test, p = 0.0" in find(result, "boot.boot_s")


def test_noise_hides_a_small_difference_and_the_report_says_how_much_noise(tmp_path: Path) -> None:
    factors = {"storage.read_4k_qd1.iops": 1.05}
    result = build(tmp_path, factors=factors, noise=0.3)
    assert "no difference could be shown" in find(result, "storage.read_4k_qd1.iops")
    (noise,) = (line for line in list_limits(result) if line.startswith("Noise"))
    assert int(re.findall(r"within (\d+) %", noise)[0]) >= 10


def test_too_few_rounds_are_said_to_be_too_few(tmp_path: Path) -> None:
    result = build(tmp_path, scale=QUICK.model_copy(update={"rounds": 3}), factors={"boot.boot_s": 5.0})
    assert "3 samples of each are too few to tell" in find(result, "boot.boot_s")
    assert summarize_result(result)[0].startswith("There are too few samples")
    assert all(row.winner is None for row in result.rows)
    assert "With fewer than 4 samples nothing is tested." in " ".join(list_limits(result))


def test_a_control_that_differs_casts_doubt(tmp_path: Path) -> None:
    factors = {row.key: 0.7 for row in QUANTITIES if row.section == "storage"}
    result = build(tmp_path, factors={**factors, "processor.steps_per_s": 0.9}, noise=0.001)
    assert "differs by 10 %" in judge_control(result)
    assert "a difference, though there should be none" in find(result, "processor.steps_per_s")


def test_what_failures_did(tmp_path: Path) -> None:
    result = build(tmp_path)
    told = {row.measure: tell_event(row) for row in result.events}
    assert "Monolithic: the guest died each time (2 tries)" in told["fault.storage_driver"]
    assert "lost: everything in the guest's memory" in told["fault.storage_driver"]
    assert "Microkernelized: the guest went on each time (2 tries)" in told["fault.storage_driver"]
    assert told["fault.storage_driver"].endswith("lost: nothing.")
    assert told["fault.vmm"].count("the guest died each time") == 2
    assert told["fault.service"].count("the guest went on each time") == 2
    assert re.search(
        r"booted again, it was up 4\.\d+ s \(4\.\d+ … 4\.\d+ s\) after", told["fault.storage_driver"]
    )
    assert told["fault.service"].count("the service was back after 2.") == 2
    assert "by its own clock" in told["update.driver"]


def test_the_summary_contrasts_failures_and_updates_and_names_the_emulation(tmp_path: Path) -> None:
    said = summarize_result(build(tmp_path))
    (storage,) = (line for line in said if line.startswith("When the storage driver fails"))
    assert re.search(
        r"monolithic, the guest died; microkernelized, the guest went on, its longest wait \d+\.\d ms "
        r"\(1\d\.\d ms when nothing fails\)\.$", storage
    )  # fmt: skip
    assert "When the VMM is killed: in both designs the guest died." in said
    assert "When the management service is killed: in both designs the guest went on." in said
    (replaced,) = (line for line in said if line.startswith("When the storage driver is replaced"))
    assert re.search(r"for 2\d\.\d ms monolithic and 2\d\.\d ms microkernelized\.$", replaced)
    assert any("emulated processors (TCG)" in line for line in said)
    host = build_host("10.0", Accelerator.KVM)
    assert not any("TCG" in line for line in summarize_result(build(tmp_path, host=host)))


def test_the_table_says_who_is_better_by_how_much_and_how_sure_that_is(tmp_path: Path) -> None:
    page = build_page(build(tmp_path, factors={"boot.boot_s": 0.5}, noise=0.001))
    boot = page.partition("boot to the guest&#x27;s signal</td>")[2].partition("</tr>")[0]
    assert ">microkernelized</span>, 50&nbsp;% less" in boot
    assert re.search(r'0\.50<span class="spread">0\.50 … 0\.50</span>', boot)
    assert "p&nbsp;=&nbsp;0.0" in boot


def test_how_far_off_a_ratio_may_be_is_among_the_limits(tmp_path: Path) -> None:
    (noise,) = (line for line in list_limits(build(tmp_path, noise=0.1)) if line.startswith("Noise"))
    middle, worst = map(int, re.findall(r"reaches (\d+) % .* at worst (\d+) %", noise)[0])
    assert 3 <= middle < worst <= 40


@pytest.mark.parametrize(
    ("low", "high", "unit", "said", "bare"),
    [
        (339.2, 452.1, "µs each", "339 … 452 µs each", "339 … 452"),
        (854, 933, "/s", "854 … 933/s", "854 … 933"),
        (0.5, 1.5, "s", "500 ms … 1.50 s", "500 ms … 1.50 s"),
        (881, 1010, "µs", "881 µs … 1.01 ms", "881 µs … 1.01 ms"),
        (24082, 30710, "IOPS", "24,082 … 30,710 IOPS", "24,082 … 30,710"),
        (0, 0.5, "MiB", "0 … 0.5 MiB", "0 … 0.5"),
    ],
)
def test_two_numbers_have_their_unit_once(low: float, high: float, unit: str, said: str, bare: str) -> None:
    assert format_span(low, high, unit) == said
    assert format_span(low, high, unit, bare=True) == bare


def test_a_try_that_differed_from_the_others_is_told(tmp_path: Path) -> None:
    store = build_store(tmp_path)
    for index, record in enumerate(store.records):
        if record.measure == "fault.storage_driver" and record.design is MICRO and record.round == 2:
            died = {"survived": 0.0, "until_normal_s": 5.0, "flushed_writes_lost": 1.0}
            store.records[index] = record.model_copy(update={"values": died})
    (row,) = (row for row in build_result(store).events if row.measure == "fault.storage_driver")
    told = tell_event(row)
    assert "the guest went on 1 of 2 times" in told
    assert "the guest died 1 of 2 times" in told
    assert "flushed writes in 1 try" in told
    assert "died in 1 of 2 tries" in " ".join(summarize_result(build_result(store)))


@pytest.mark.parametrize(
    ("version", "accelerator", "said", "unsaid"),
    [("7.2", Accelerator.TCG, "ran on TCG", "ran on KVM"), ("10.0", Accelerator.KVM, "ran on KVM", "TCG")],
)
def test_each_machine_is_described_as_what_it_is(
    tmp_path: Path, version: str, accelerator: Accelerator, said: str, unsaid: str
) -> None:
    host = build_host(version, accelerator, cpus=64, processor="Other & <Sons>")
    store = build_store(tmp_path, host=host)
    for index, record in enumerate(store.records):
        if record.measure == "authority":
            facts = {**record.facts, "accelerator": str(accelerator)}
            store.records[index] = record.model_copy(update={"facts": facts})
    page = build_page(build_result(store))
    assert said in page
    assert unsaid not in page
    assert f"QEMU {host.qemu}" in page
    assert "Other &amp; &lt;Sons&gt;, 64 CPUs" in page
    assert "share them" not in page


def test_a_busy_or_small_machine_is_said_to_be_one(tmp_path: Path) -> None:
    said = " ".join(list_limits(build(tmp_path, load=9.0)))
    assert "9.0 or more tasks wanted its 2 processors" in said
    assert "The machine has 2 processors" in said


def test_failed_and_skipped_steps_are_in_the_report(tmp_path: Path) -> None:
    store = build_store(tmp_path)
    for index, record in enumerate(store.records):
        if record.measure.startswith("network."):
            changed = {"outcome": Outcome.SKIPPED, "reason": "bridges need root", "values": {}}
        elif record.measure == "boot" and record.round == 2 and record.design is MONO:
            changed = {"outcome": Outcome.FAILED, "reason": "the guest died: its VMM <crashed>", "values": {}}
        else:
            continue
        store.records[index] = record.model_copy(update=changed)
    result = build_result(store)
    page = build_page(result)
    assert "boot, monolithic, round 2: the guest died: its VMM &lt;crashed&gt;" in page
    assert "network.to_guest: bridges need root" in page
    assert result.rows_of("network") == []
    assert "Network</h2>" not in page


def test_an_unfinished_comparison_says_so(tmp_path: Path) -> None:
    result = build(tmp_path, steps=20)
    assert not result.is_complete
    assert any(line.startswith("It is not finished: 20 of") for line in list_limits(result))
    assert "<h1>" in build_page(result)


def test_nothing_measured_is_a_page_too(tmp_path: Path) -> None:
    page = build_page(build(tmp_path, steps=0))
    assert "<h1>" in page
    assert "svg" not in page.partition("</style>")[2]


def test_the_page_needs_no_other_file_and_is_sound(tmp_path: Path) -> None:
    page = build_page(build(tmp_path))
    outside = [url for url in re.findall(r'(?:src|href|url)\s*[=(]\s*"?([^">)]*)', page) if url != "data:,"]
    assert outside == []
    assert "<script" not in page
    drawings = SVG.findall(page)
    assert len(drawings) == PICTURES
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    for note in HONESTY:
        assert note.split("'")[0][:40] in page


def test_every_section_has_a_plot(tmp_path: Path) -> None:
    plots = build_plots(build(tmp_path))
    assert {section for section, drawings in plots.items() if drawings} == {*SECTIONS, "cost"}
    names = [drawing.name for drawings in plots.values() for drawing in drawings]
    assert len(set(names)) == len(names)


def test_report_json_holds_samples_figures_and_statements(tmp_path: Path) -> None:
    write_report(build(tmp_path, factors={"boot.boot_s": 2.0}, noise=0.001), tmp_path)
    document = json.loads((tmp_path / "report.json").read_text())
    by_key = {row["key"]: row for row in document["quantities"]}
    boot = by_key["boot.boot_s"]
    assert len(boot["samples"]["monolithic"]) == 6
    assert boot["monolithic"]["n"] == 6
    assert boot["ratio"] == pytest.approx(2.0, rel=0.01)
    assert boot["better"] == "lower"
    assert "monolithic" in boot["statement"]
    assert document["complete"] is True
    assert document["test"] == "Mann-Whitney U test"
    assert (tmp_path / "report.html").stat().st_size > 50_000
    assert len(list((tmp_path / "plots").glob("*.png"))) == PICTURES
