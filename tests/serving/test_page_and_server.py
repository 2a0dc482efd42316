"""The page in a real browser before the real server, whose key it has to be given."""

import re

import pytest
from support.browser import INSTALLED, browser
from support.serving import LONGEST, NAME, running, save_small, served_of

from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.serving.settings import Settings

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(not INSTALLED, reason="chromium and chromedriver are not installed"),
]


def test_the_page_talks_to_the_server_and_shows_its_refusals(tmp_path):
    served = served_of(save_small(tmp_path), SentencePieceTokenizer(tmp_path / "small.model"))
    with running(served, Settings(NAME, key="secret")) as server, browser(tmp_path / "profile") as page:

        def say(text: str) -> None:
            page.run("document.querySelector('#message').focus()")
            page.type(text + "\n")
            page.wait(lambda: page.run("return !document.querySelector('[aria-busy]')"))

        page.open(f"{server.address}/")
        page.wait(lambda: page.text("#state") == "locked")
        assert page.text("#note") == "the API key is missing or wrong: send it as Authorization: Bearer KEY"
        page.type("secret\n")
        page.wait(lambda: page.text("#state") == "ready")
        assert page.text("#model") == NAME
        page.click("#settings summary")
        for name, value in {"temperature": "1.3", "max_tokens": "12", "seed": "5"}.items():
            page.click(f"#{name}")
            page.type(value)
        page.type("\n")
        say("reads a shard")
        first = page.text("article:last-child .text")
        figures = page.text("article:last-child .below span")
        assert first and 1 <= int(re.match(r"(\d+) tokens?\b", figures)[1]) <= 12
        page.click("article:last-child .below button:last-child")
        page.wait(lambda: page.run("return !document.querySelector('[aria-busy]')"))
        assert page.text("article:last-child .text") == first  # the same seed
        say("many words " * 100)
        refusal = page.text("article:last-child .error")
        assert refusal.endswith(f"at most {LONGEST - 1} are taken")  # one place is left for an answer
        say("reads a shard")
        assert page.text("article:last-child .error") == "" and page.text("article:last-child .below span")
