"""A scripted conversation in a real browser, at the widths of a desk and of a phone."""

import pytest
from support.browser import INSTALLED, KEYS, browser
from support.standing_in import CODE, HOSTILE, LONG, POLITE, Kept, standing_in

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(not INSTALLED, reason="chromium and chromedriver are not installed"),
]
ANSWER = "article:last-child .text"
SHOWN = "return document.querySelector('article:last-child .text').textContent"
QUIET = "return !document.querySelector('[aria-busy]')"


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def kept():
    return Kept()


@pytest.fixture
def port(kept):
    with standing_in(kept) as served:
        yield served


@pytest.fixture
def page(window, port):
    window.look_like(1280, 800, "light")
    window.open(f"http://127.0.0.1:{port}/")
    window.wait(lambda: window.text("#state") in ("ready", "locked"))
    return window


def say(page, text: str) -> None:
    page.run("document.querySelector('#message').focus()")
    page.type(text + "\n")
    page.wait(lambda: page.run(QUIET))


def test_a_conversation_is_carried_on_with_its_settings(page, kept):
    assert page.text("#model") == "nano-1.3m"
    page.click("#settings summary")
    for name, value in {"system": "Be brief", "temperature": "0.5", "top_p": "0.9", "max_tokens": "64"}.items():
        page.click(f"#{name}")
        page.type(value)
    page.type(KEYS["escape"])
    page.click("#message")
    say(page, f"hello{KEYS['shift']}\n{KEYS['release']}there")
    say(page, "and more")
    assert page.text(ANSWER) == POLITE
    count = -(-len(POLITE) // 7)
    assert page.text("article:last-child .below span").startswith(f"{count} tokens · ")
    system, first = {"role": "system", "content": "Be brief"}, {"role": "user", "content": "hello\nthere"}
    assert [body["messages"] for body in kept.asked] == [
        [system, first],
        [system, first, {"role": "assistant", "content": POLITE}, {"role": "user", "content": "and more"}],
    ]
    way = {name: kept.asked[1][name] for name in ("model", "temperature", "top_p", "max_tokens", "stream")}
    assert way == {"model": "nano-1.3m", "temperature": 0.5, "top_p": 0.9, "max_tokens": 64, "stream": True}
    assert "seed" not in kept.asked[1]


def test_an_answer_is_stopped_and_written_again(page, kept):
    page.type("count\n")
    page.wait(lambda: "5 " in page.text(ANSWER))
    page.click("#stop")
    page.wait(lambda: page.run(QUIET) and kept.gone_away == 1)
    assert "stopped" in page.text("article:last-child .below span")
    assert "199" not in page.text(ANSWER)
    page.click("article:last-child .below button:last-child")
    page.wait(lambda: len(kept.asked) == 2)
    assert kept.asked[1]["messages"] == kept.asked[0]["messages"]
    page.type(KEYS["escape"])
    page.wait(lambda: page.run(QUIET) and kept.gone_away == 2)


@pytest.mark.parametrize("status", [400, 413, 429, 503])
def test_a_refusal_is_shown_in_the_servers_words_and_left_out_of_what_follows(page, kept, status):
    say(page, f"refuse {status} it is <b>too much</b>")
    assert page.text("article:last-child .error") == "Refused because it is <b>too much</b>."
    say(page, "hello")
    assert page.text(ANSWER) == POLITE
    assert kept.asked[1]["messages"] == [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("question", "sentence"),
    [("break", "The server ended before its answer did."), ("fail", "The model ran out of its cache.")],
)
def test_an_answer_that_ends_in_an_error_keeps_what_was_written(page, question, sentence):
    say(page, question)
    assert page.text("article:last-child .error") == sentence
    assert page.text(ANSWER) == POLITE[:14]


def test_the_key_is_asked_for_and_a_wrong_one_refused(page, kept, port):
    kept.key = "right"
    page.run("sessionStorage.clear()")
    page.open(f"http://127.0.0.1:{port}/")
    page.wait(lambda: page.text("#state") == "locked")
    assert page.text("#note") == "This server wants its API key as Authorization: Bearer KEY."
    page.type("wrong\n")
    page.wait(lambda: page.run("return sessionStorage.getItem('key')") is None)
    page.wait(lambda: page.run("return document.activeElement.id") == "secret")
    page.type("right\n")
    page.wait(lambda: page.text("#state") == "ready")
    say(page, "hello")
    assert page.text(ANSWER) == POLITE
    assert page.run("return [Object.keys(localStorage).length, sessionStorage.getItem('key')]") == [0, "right"]


def test_a_server_that_is_gone_is_said_to_be_and_found_again(window):
    with standing_in(Kept()) as port:
        window.look_like(1280, 800, "light")
        window.open(f"http://127.0.0.1:{port}/")
        window.wait(lambda: window.text("#state") == "ready")
    say(window, "anyone there?")
    window.wait(lambda: window.text("#state") == "no answer")
    assert window.text("article:last-child .error") == "The server does not answer."
    with standing_in(Kept(), port):
        window.wait(lambda: window.text("#state") == "ready")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_text_of_any_kind_is_shown_as_it_is_and_bursts_nothing(page, width, scheme):
    page.look_like(width, 800, scheme, "reduce")
    page.complaints()
    for question, text in (("hostile", HOSTILE), ("code", CODE), ("long", LONG)):
        say(page, question)
        inside = page.run("const m = document.querySelector('main'); return [m.scrollWidth, m.clientWidth, innerWidth]")
        assert inside[0] == inside[1] <= inside[2] == width
        assert page.run("return document.documentElement.scrollWidth") == width
        shown = page.run(SHOWN)
        fences = ("```html", "```python", "```an open fence", "```")
        assert shown.replace("\n", "") == "".join(line for line in text.split("\n") if line not in fences)
    assert page.run("return document.title") == "nano-1.3m · chat"
    assert page.run("return document.querySelectorAll('.text :not(div, pre)').length") == 0
    assert page.run("return getComputedStyle(document.querySelector('#state'), '::before').animationName") == "none"
    assert page.complaints() == []


def test_the_view_follows_the_answer_until_the_reader_scrolls_away(page):
    say(page, "long")
    left = "const m = document.querySelector('main'); return m.scrollHeight - m.scrollTop - m.clientHeight"
    assert page.run(left) < 2
    page.type("count\n")
    page.run("document.querySelector('main').scrollTop = 300")
    page.wait(lambda: "30 " in page.text(ANSWER))
    assert page.run("return document.querySelector('main').scrollTop") == 300
    page.click("#latest")
    page.wait(lambda: page.run(left) < 2)
    page.click("#new")
    page.wait(lambda: page.run("return document.querySelectorAll('article').length") == 0)
