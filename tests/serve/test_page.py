"""The chat page, as a browser shows it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server is not installed: pip install 'potq[serve]'")

from browser import PROGRAM, Page, browser
from potq.engine.scheduler import Scheduler
from serve_helpers import Live, live

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="a browser shows the page; apt-get install chromium")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("chromium")) as page:
        yield page


def say(page: Page, text: str) -> None:
    page.run(f"at('said').value = {text!r}; at('ask').requestSubmit()")
    page.wait("running === null")


def test_a_chat(shown: Page, server: Live) -> None:
    shown.open(server.url)
    shown.wait("at('model').textContent === 'tiny-pot4'")
    shown.run("at('most').value = 12; at('temperature').value = 0")
    say(shown, "the cat")
    assert shown.run("document.querySelector('.user').textContent") == "the cat"
    assert "tokens/s · " in shown.run("document.querySelector('.speed').textContent")
    assert shown.run("turns.length") == 2
    assert shown.run("document.querySelector('.assistant').textContent === turns[1].content")
    say(shown, "and then?")
    assert [turn["role"] for turn in shown.run("turns")] == ["user", "assistant"] * 2
    shown.run("at('fresh').click()")
    assert shown.run("turns.length + at('turns').children.length") == 0
    assert shown.errors == []


def test_it_works_offline(shown: Page, server: Live) -> None:
    """Nothing is asked of anybody but the server."""
    shown.requested.clear()
    shown.open(server.url)
    shown.wait("at('model').textContent === 'tiny-pot4'")
    assert len(shown.requested) >= 2
    assert all(address.startswith((server.url, "data:")) for address in shown.requested)


def test_an_answer_can_be_stopped(shown: Page, server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Scheduler.step
    monkeypatch.setattr(Scheduler, "step", lambda self: time.sleep(0.05) or step(self))
    shown.open(server.url)
    shown.run("at('most').value = 900; at('temperature').value = 0; at('said').value = 'the cat'; at('ask').requestSubmit()")
    shown.wait("(document.querySelector('.assistant')?.textContent.length ?? 0) > 2")
    assert shown.run("at('send').textContent") == "Stop"
    shown.run("at('ask').requestSubmit()")
    shown.wait("running === null")
    assert shown.run("turns[1].content.length") > 2


def test_markup_is_text(shown: Page, server: Live) -> None:
    shown.open(server.url)
    shown.run("show('assistant', '<img src=x onerror=alert(1)>')")
    assert shown.run("document.querySelectorAll('main img').length") == 0


def test_a_refusal_is_told_and_the_question_kept(shown: Page, chat_folder: Path) -> None:
    with live(chat_folder, api_keys=("secret",)) as server:
        shown.open(server.url)
        say(shown, "the cat")
        assert "give an API key" in shown.run("document.querySelector('.error').textContent")
        assert shown.run("at('said').value") == "the cat"
        shown.run("at('key').value = 'secret'")
        say(shown, "the cat")
        assert shown.run("turns.length") == 2


def test_it_fits_a_phone(shown: Page, server: Live) -> None:
    shown.size(360, 640)
    shown.open(server.url)
    assert shown.run("document.documentElement.scrollWidth") == 360
