"""What guests felt of a switch, from questions, gaps and counters made by hand."""

from __future__ import annotations

import pytest
from bench.switch_beat import find_longest, parse_gaps
from bench.switch_guest import parse_pings
from bench.switch_pauses import (
    DAY_MS,
    NS,
    Question,
    Window,
    count_lost,
    find_lags,
    find_waits,
    parse_questions,
)
from bench.switch_questions import build_question, parse_answer

START = 1_795_402_141_000 * NS


def ask(milliseconds: float, *, takes: float = 0.4, behind: float = 0.0) -> Question:
    """A question at some time after ``START``, whose guest's clock is that much behind ours."""
    sent = START + round(milliseconds * NS)
    answered = sent + round(takes * NS)
    return Question(sent, answered, int(((sent + answered) / 2 / NS - behind) % DAY_MS))


def test_questions_are_read_and_those_without_an_answer_are_lost() -> None:
    questions = parse_questions("1000 1400 7\n2000\n3000 3300 9")
    assert questions == [Question(1000, 1400, 7), Question(2000), Question(3000, 3300, 9)]
    assert count_lost(questions) == 1


def test_the_longest_wait_is_that_of_the_first_question_in_the_pause() -> None:
    questions = [ask(at) for at in range(0, 1000, 2)]
    for at in range(500, 530, 2):
        questions[at // 2] = ask(at, takes=530.0 - at)
    windows = [Window(START + at * NS, START + (at + 40) * NS) for at in (200, 499)]
    assert find_waits(questions, windows) == pytest.approx([0.4, 30.0])


@pytest.mark.parametrize("before", [0.0, 10_141_300.0])  # the latter begins before midnight
def test_a_clock_that_stood_still_is_behind(before: float) -> None:
    early = [ask(at * 2.3, behind=before) for at in range(200)]
    late = [ask(at * 2.3, behind=before + 17.5) for at in range(220, 500)]
    window = Window(START + 460 * NS, START + 506 * NS)
    assert find_lags(early + late, [window]) == pytest.approx([17.5], abs=0.3)
    assert find_lags(early, [window]) == []  # nobody answers afterwards


def test_a_gap_counts_for_the_windows_that_it_reaches_into() -> None:
    gaps = parse_gaps("1000000 3000000\n9000000 16500000\n17")
    assert gaps == [Window(NS, 3 * NS), Window(9 * NS, 16_500_000)]
    windows = [Window(0, 5 * NS), Window(5 * NS, 8 * NS), Window(16 * NS, 30 * NS)]
    assert find_longest(gaps, windows) == [2.0, 0, 7.5]


def test_pings_are_what_the_kernel_counted() -> None:
    snmp = "Icmp: InMsgs OutMsgs\nIcmp: 9 9\nIcmpMsg: InType0 InType8 OutType8\nIcmpMsg: 395 2 400\n"
    assert parse_pings(snmp) == (400, 395)


def test_an_answer_is_told_from_others() -> None:
    question = build_question(0x1234, 7)
    assert question.hex() == "0d00e0c4" + "1234" + "0007" + 24 * "0"
    header = bytes([0x45]) + bytes(19)
    reply = bytes([14]) + question[1:12] + (86_399_999).to_bytes(4, "big") + bytes(4)
    assert parse_answer(header + reply, 0x1234) == (7, 86_399_999)
    assert parse_answer(header + reply, 0x4321) is None
    assert parse_answer(header + question, 0x1234) is None
    assert parse_answer(header + reply[:8], 0x1234) is None
