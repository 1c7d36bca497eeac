"""The report in a real browser: on a desktop, on a phone, and on paper."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from tests.unit.comparison.browser import find_browser, start_browser
from tests.unit.comparison.synthetic import build_store
from tests.unit.comparison.test_report import PICTURES

from duovisor.comparison.report.result import build_result
from duovisor.comparison.report.writing import PAGE, write_report

if TYPE_CHECKING:
    from pathlib import Path

DESKTOP, PHONE = 1280, 390
# of each drawing: name, size on the screen, and whether every text in it has a size and is inside
LOOK = """
[...document.querySelectorAll('svg[data-plot]')].map(svg => {
    const place = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll('text')].map(text => text.getBoundingClientRect());
    const out = texts.filter(t => t.width <= 0 || t.left < place.left - 2 || t.right > place.right + 2);
    return {name: svg.dataset.plot, width: place.width, height: place.height, texts: texts.length,
            rects: svg.querySelectorAll('rect').length, out: out.length};
})
"""


@pytest.fixture(scope="module")
def program() -> str:
    found = find_browser()
    if found is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    return found


def test_every_plot_is_drawn_and_nothing_is_asked_of_anybody(tmp_path: Path, program: str) -> None:
    factors = {"storage.read_4k_qd32.iops": 1.3, "boot.vmm_start_s": 1.8, "idle.pss_mib": 1.2}
    write_report(build_result(build_store(tmp_path, factors=factors)), tmp_path)
    report = tmp_path / PAGE
    with start_browser(program, tmp_path) as page:
        for width in (DESKTOP, PHONE):
            page.open(report, width, is_phone=width == PHONE)
            plots = page.evaluate(LOOK)
            assert len(plots) == PICTURES
            assert [plot for plot in plots if plot["out"]] == []
            assert all(plot["height"] > 60 and plot["texts"] > 3 and plot["rects"] > 3 for plot in plots)
            assert page.evaluate("document.documentElement.scrollWidth") == width  # no sideways scrolling
            widest = max(plot["width"] for plot in plots)
            assert 300 < widest <= (width if width == PHONE else 640)
        assert page.requests == [report.resolve().as_uri()] * 2
        assert page.complaints == []
        paper = page.print()
    assert paper.startswith(b"%PDF-")
    assert 4 <= len(re.findall(rb"/Type\s*/Page[^s]", paper)) <= 20
    assert b"/MediaBox [0 0 59" in paper  # A4, as the page asks for


def test_what_tries_to_leave_the_file_is_stopped(tmp_path: Path, program: str) -> None:
    """The policy in the page holds even for what should not be in it."""
    write_report(build_result(build_store(tmp_path)), tmp_path)
    text = (tmp_path / PAGE).read_text()
    evil = '<img src="http://127.0.0.1:9/x.png"><script>document.title = "ran"</script>'
    (tmp_path / "evil.html").write_text(text.replace("<h1>", f"{evil}<h1>"))
    with start_browser(program, tmp_path) as page:
        page.open(tmp_path / "evil.html", DESKTOP)
        assert page.evaluate("document.title") != "ran"
        assert any("Content Security Policy" in complaint for complaint in page.complaints)
