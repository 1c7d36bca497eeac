"""Raw samples on the disk: what is begun goes on, what is of another comparison is refused."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from tests.unit.comparison.synthetic import build_host, build_record

from duovisor.comparison.errors import ComparisonFolderError
from duovisor.comparison.plan import FULL, QUICK, build_steps
from duovisor.comparison.samples import HEADER, SAMPLES, Header, holding, load_store, open_store
from duovisor.spec.vm import Accelerator

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.comparison.samples import SampleStore

STEPS = build_steps(QUICK)
HERE = Header(scale=QUICK, host=build_host(), started_at=1.0)


def add(store: SampleStore, number: int) -> None:
    chance = random.Random(1)
    for step in STEPS[len(store.records) : len(store.records) + number]:
        store.add(build_record(step, {}, chance, 0.01, 1.0))


def test_what_was_measured_is_there_again(tmp_path: Path) -> None:
    store = open_store(tmp_path / "new", HERE)
    add(store, 5)
    again = open_store(tmp_path / "new", Header(scale=QUICK, host=build_host(), started_at=9.0))
    assert again.records == store.records
    assert again.header.started_at == 1.0
    assert [again.has(step) for step in STEPS[:6]] == [True] * 5 + [False]


def test_a_line_that_was_cut_off_is_measured_again(tmp_path: Path) -> None:
    add(open_store(tmp_path / "new", HERE), 3)
    path = tmp_path / "new" / SAMPLES
    path.write_bytes(path.read_bytes()[:-20])
    store = open_store(tmp_path / "new", HERE)
    assert len(store.records) == 2
    assert not store.has(STEPS[2])
    add(store, 1)
    assert len(load_store(tmp_path / "new").records) == 3


def test_a_comparison_killed_before_its_first_sample_goes_on(tmp_path: Path) -> None:
    open_store(tmp_path / "new", HERE)
    assert open_store(tmp_path / "new", HERE).records == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (Header(scale=FULL, host=build_host(), started_at=2.0), "other options (quick)"),
        (Header(scale=QUICK, host=build_host("10.0"), started_at=2.0), "another machine"),
        (Header(scale=QUICK, host=build_host(accelerator=Accelerator.KVM), started_at=2.0), "guests on TCG"),
        (Header(scale=QUICK, host=build_host(duovisor="9.9"), started_at=2.0), "another machine"),
    ],
)
def test_samples_of_another_comparison_are_not_mixed_in(tmp_path: Path, changed: Header, words: str) -> None:
    add(open_store(tmp_path / "new", HERE), 2)
    before = (tmp_path / "new" / SAMPLES).read_bytes()
    with pytest.raises(ComparisonFolderError) as caught:
        open_store(tmp_path / "new", changed)
    assert words in caught.value.message
    assert (tmp_path / "new" / SAMPLES).read_bytes() == before


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ComparisonFolderError, match="has files in it"):
        open_store(tmp_path, HERE)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("text", ["", "{}", "nonsense", '{"format": 1, "more": 2}'])
def test_what_is_no_comparison_is_said_to_be_none(tmp_path: Path, text: str) -> None:
    (tmp_path / HEADER).write_text(text)
    with pytest.raises(ComparisonFolderError, match="no comparison"):
        open_store(tmp_path, HERE)


def test_a_line_that_is_no_record_is_said_to_be_none(tmp_path: Path) -> None:
    open_store(tmp_path / "new", HERE)
    (tmp_path / "new" / SAMPLES).write_text('{"round": "many"}\n')
    with pytest.raises(ComparisonFolderError, match="no comparison"):
        open_store(tmp_path / "new", HERE)


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ComparisonFolderError, match="cannot use"):
        open_store(tmp_path / "file", HERE)


def test_two_comparisons_in_one_folder_at_once(tmp_path: Path) -> None:
    with holding(tmp_path / "new"):
        with (
            pytest.raises(ComparisonFolderError, match="another comparison is at work"),
            holding(tmp_path / "new"),
        ):
            pass
        with holding(tmp_path / "other"):
            pass
    with holding(tmp_path / "new"):
        assert open_store(tmp_path / "new", HERE).records == []


def test_a_file_cannot_be_held(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ComparisonFolderError, match="cannot use"), holding(tmp_path / "file"):
        pass
