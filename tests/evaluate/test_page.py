"""``potq compare``'s page: what it holds, and how a browser shows it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from browser import PROGRAM, Page, browser
from potq.errors import DataError
from potq.evaluate.compare import FULL_PRECISION, Row
from potq.evaluate.page import page, write_page

TITLE = "a </script><b>model</b> on text: 2 windows"


def row(scheme: str, effort: str, bits: float, perplexity: float) -> Row:
    nll = (60 * math.log(perplexity), 66 * math.log(perplexity))
    return Row(scheme, effort, bits, bits - 0.1, perplexity, 64, 126, nll, 1.5)


PLAIN = [
    row(FULL_PRECISION, "", 32, 24.0),
    row("pot4-g64", "fast", 4.25, 51.0),
    row("pot4-g64", "gptq", 4.25, 30.0),
    row("pot2-g64", "fast", 2.25, 898_333.0),
]
BESIDE = [(0.0, 0.75, 10.0), (0.2, 0.5, 40.0), (0.1, 0.75, 41.0), (3.0, 0.25, 60.0)]
ROWS = [
    replace(each, divergence=apart, tasks={"choice acc": score}, tokens_per_second=speed)
    for each, (apart, score, speed) in zip(PLAIN, BESIDE, strict=True)
]


def held(text: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    result: dict[str, object] = json.loads(found[1])
    return result


def test_it_holds_the_rows() -> None:
    found = held(page(ROWS, TITLE, 1_000_000))
    assert found["title"] == TITLE
    rows = found["rows"]
    assert isinstance(rows, list)
    assert [row["perplexity"] for row in rows] == [24.0, 51.0, 30.0, 898_333.0]
    assert [row["megabytes"] for row in rows] == [4.0, 0.53125, 0.53125, 0.28125]
    assert rows[1]["excess"] == 27.0
    assert rows[1]["interval"] == list(ROWS[1].interval(ROWS[0]) or ())
    assert "window_nll" not in rows[0]


def test_it_holds_what_else_was_measured() -> None:
    found = held(page(ROWS, TITLE, 1))["rows"]
    assert isinstance(found, list)
    assert [row["tokens_per_second"] for row in found] == [10.0, 40.0, 41.0, 60.0]
    assert [row["tasks"]["choice acc"] for row in found] == [0.75, 0.5, 0.75, 0.25]
    assert [row["divergence"] for row in found] == [0.0, 0.2, 0.1, 3.0]


def test_it_asks_nobody() -> None:
    text = page(ROWS, TITLE, 1)
    assert set(re.findall(r"https?://[^\"'`\s]+", text)) == set()
    assert re.findall(r'(?:src|href)="(?!data:)', text) == []


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        write_page(ROWS, tmp_path / "none" / "a.html", TITLE, 1)
    with pytest.raises(DataError, match="it is a folder"):
        write_page(ROWS, tmp_path, TITLE, 1)


# ---- in a browser


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if PROGRAM is None:
        pytest.skip("a browser shows the page; apt-get install chromium")
    folder = tmp_path_factory.mktemp("page")
    write_page(ROWS, folder / "rows.html", TITLE, 1_000_000)
    with browser(folder / "chromium") as page:
        page.open((folder / "rows.html").as_uri())
        yield page
        assert page.errors == []
        assert all(address.startswith(("file:", "data:")) for address in page.requested)


def points(shown: Page) -> list[list[float]]:
    script = "[...document.querySelectorAll('.point')].map(p => [p.cx.baseVal.value, p.cy.baseVal.value])"
    found: list[list[float]] = shown.run(script)
    return found


def test_points_stand_where_they_belong(shown: Page) -> None:
    pot4, gptq, pot2 = points(shown)
    assert pot4[0] == gptq[0] > pot2[0]
    assert gptq[1] > pot4[1] > pot2[1]  # down is less
    assert shown.run("document.querySelector('h1').textContent") == TITLE
    assert shown.run("document.querySelectorAll('#rows tr').length") == 4


def test_what_can_be_chosen(shown: Page) -> None:
    shown.run("at('across').value = 'size'; at('up').value = 'excess'; at('up').dispatchEvent(new Event('change'))")
    assert len(points(shown)) == 3
    shown.run("document.querySelector('.point').dispatchEvent(new Event('click'))")
    told = shown.run("at('told').textContent")
    assert told.startswith("pot4-g64, fast: perplexity 51, 27 more than full precision (95% interval ")
    assert shown.run("document.querySelectorAll('tr.chosen').length") == 1
    shown.run("document.querySelector('#efforts input').click()")
    assert len(points(shown)) == 1
    shown.run("document.querySelector('#efforts input').click()")
    shown.run("[...document.querySelectorAll('th button')].find(b => b.textContent === 'perplexity').click()")
    assert shown.run("[...document.querySelectorAll('#rows tr')].map(r => r.cells[2].textContent)")[:2] == ["24", "30"]


def test_what_else_was_measured_can_be_chosen(shown: Page) -> None:
    shown.run("at('across').value = 'tokens/s'; at('up').value = 'choice acc'; at('up').dispatchEvent(new Event('change'))")
    pot4, gptq, pot2 = points(shown)
    assert pot4[0] < gptq[0] < pot2[0]
    assert gptq[1] < pot4[1] < pot2[1]  # up is more
    assert shown.run("document.querySelectorAll('.base').length") == 1
    shown.run("document.querySelector('.point').dispatchEvent(new Event('click'))")
    assert shown.run("at('told').textContent").endswith(", divergence 0.2, choice acc 0.5, tokens/s 40")
    assert shown.run("[...document.querySelectorAll('th')].map(h => h.textContent)")[-3:] == [
        "divergence",
        "choice acc",
        "tokens/s",
    ]


def test_it_fits_a_phone(shown: Page) -> None:
    shown.size(360, 640)
    shown.wait("innerWidth === 360")
    assert shown.run("document.documentElement.scrollWidth <= innerWidth")  # less by the bar at its side
    assert shown.run("at('chart').getBoundingClientRect().width") > 300
