"""report.html in a real browser."""

from __future__ import annotations

import json
from pathlib import Path

import browser
import pytest

from rmu_exp.sweep import report

pytestmark = pytest.mark.skipif(browser.MISSING is not None, reason=str(browser.MISSING))
ROWS = "[...document.querySelectorAll('tbody tr')].map(r => r.dataset.name)"


@pytest.fixture(scope="module")
def window():
    with browser.browser() as opened:
        yield opened


@pytest.fixture
def page(window, make_trial, tmp_path):
    counts = {(3, 2): (70, 99), (3, 10): (40, 90), (7, 2): (60, 98), (7, 10): (28, 97)}
    for (layer, steer), (forget, general) in counts.items():
        make_trial({"layer": layer, "steer": steer}, forget, general)
    (make_trial({"layer": 9, "steer": 2}) / "error.txt").write_text("layer: got 9, allowed is 0 to 3\n")
    report.write(tmp_path, ("forget", "general"))
    window.open(tmp_path / "report.html")
    return window


def test_hover_filter_and_sort(page):
    assert page.run("document.querySelector('#count').textContent") == "5 of 5 trials"
    assert page.run("document.querySelectorAll('.dot').length") == 4  # the failed one has no place in the plot
    assert page.run("document.querySelectorAll('.dot.front').length") == 3
    assert page.run("document.querySelector('tr.chosen').dataset.name") == "layer=7,steer=10"

    page.hover("[data-name='layer=3,steer=10'].dot")
    tip = page.run("document.querySelector('#tip').textContent")
    assert tip.splitlines()[:2] == ["layer=3,steer=10", "forget  40.0 %  (30.9–49.8)"]
    assert page.run("getComputedStyle(document.querySelector('#tip')).display") == "block"
    assert page.run("document.querySelector('tr.lit').dataset.name") == "layer=3,steer=10"

    page.click("button[data-sort=forget]")
    assert page.run(ROWS)[:2] == ["layer=7,steer=10", "layer=3,steer=10"]
    page.click("button[data-sort=forget]")
    assert page.run(ROWS)[:2] == ["layer=3,steer=2", "layer=7,steer=2"]
    assert page.run(ROWS)[-1] == "layer=9,steer=2"  # what was not measured stands last both ways
    page.click("button[data-sort=steer]")
    assert page.run(ROWS)[-1] == "layer=7,steer=10"  # 10 after 2: numbers, not words

    page.type("select[data-key=layer]", "7")
    assert sorted(page.run(ROWS)) == ["layer=7,steer=10", "layer=7,steer=2"]
    assert page.run("document.querySelectorAll('.dot').length") == 2
    page.type("#search", "steer=2")
    assert page.run(ROWS) == ["layer=7,steer=2"]
    assert page.run("document.querySelector('#count').textContent") == "1 of 5 trials"


def test_only_the_front_and_other_axes(page):
    page.click("#only")
    assert sorted(page.run(ROWS)) == ["layer=3,steer=2", "layer=7,steer=10", "layer=7,steer=2"]
    page.type("#x", "steer")
    assert "steer" in page.run("document.querySelector('#plot').textContent")
    assert page.run("document.querySelectorAll('.dot').length") == 3


def test_no_error_and_no_network(page):
    page.hover(".dot")
    page.click("button[data-sort=general]")
    assert [line["message"] for line in page.log("browser") if line["level"] == "SEVERE"] == []
    events = [json.loads(line["message"])["message"] for line in page.log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked
    assert all(url.startswith("file:") and Path(url).name == "report.html" for url in asked)
