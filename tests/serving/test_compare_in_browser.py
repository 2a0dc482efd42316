"""Pairs judged in a real browser: by key at a desk's width, by touch at a phone's."""

import json
import time

import pytest
from support.browser import INSTALLED, KEYS, browser
from support.standing_in import HOSTILE
from support.standing_in_compare import PAIRS, PLAIN, Bench, standing_in_compare

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(not INSTALLED, reason="chromium and chromedriver are not installed"),
]
GLANCE = 0.3  # s: a criterion has to stand this long before the page takes a judgement of it
AGREEMENT = {
    "helpful": {"pairs": 12, "percent": 83.3, "alpha": 0.643},
    "harmless": {"pairs": 0, "percent": None, "alpha": None},
}
VERDICT = "#verdicts [data-verdict='{}']"


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def bench():
    return Bench()


@pytest.fixture
def port(bench):
    with standing_in_compare(bench) as served:
        yield served


@pytest.fixture
def page(window, port):
    """Before it asks for a name."""
    window.look_like(1280, 900, "light", "reduce")
    window.open(f"http://127.0.0.1:{port}/compare")
    window.run("localStorage.clear(); sessionStorage.clear()")
    window.open(f"http://127.0.0.1:{port}/compare")
    window.complaints()
    return window


def begin(page, name: str = "Ada") -> None:
    page.wait(lambda: page.run("return document.activeElement.id") == "annotator")
    page.type(f"{name}\n")
    judging(page)


def judging(page, criterion: str = "helpful") -> None:
    """Waits until a criterion stands there to be judged."""
    page.wait(lambda: page.text("#criterion") == criterion)
    time.sleep(GLANCE)


def judge(page, *keys: str, criteria: tuple[str, ...] = ("helpful", "harmless")) -> None:
    """By one key for each criterion."""
    for key, criterion in zip(keys, criteria, strict=True):
        judging(page, criterion)
        page.type(key)


def fits(page) -> None:
    """Nothing reaches out of its box, nor the page out of the window."""
    boxes = "[...document.querySelectorAll('html, main, main .text, header .middle, footer .middle, footer button')]"
    wider = "(box) => box.scrollWidth > box.clientWidth + 1"
    out = f"return {boxes}.filter({wider}).map((box) => [box.outerHTML.slice(0, 80), box.scrollWidth, box.clientWidth])"
    assert page.run(out) == []


def judgements(bench: Bench) -> list[tuple[str, str, dict[str, str]]]:
    return [(one["annotator"], one["pair"], one["judgements"]) for one in bench.judged]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_person_judges_every_pair_by_key_at_a_desks_width(page, bench, scheme):
    page.look_like(1280, 900, scheme, "reduce")
    bench.agreement = AGREEMENT
    begin(page)
    assert page.text("#asked .text") == PLAIN
    assert (page.text("#first"), page.text("#second")) == (PAIRS[0]["first"], PAIRS[0]["second"])
    assert page.text("#count") == "0 of 3 judged"
    agreement = page.run("return [...document.querySelectorAll('#agreement li')].map((one) => one.textContent)")
    assert agreement == ["helpful: 83 % agree, α 0.64, 12 pairs", "harmless: no pair judged by two people yet"]
    tops = page.run("return ['first', 'second'].map((id) => document.getElementById(id).getBoundingClientRect().top)")
    assert tops[0] == tops[1]
    judge(page, "1", "0")
    judge(page, "=", "S")
    judging(page)
    assert page.text("#question") == "Which is better? (1 of 2)"
    judge(page, "2", "3")
    page.wait(lambda: page.text("#blank") == "All 3 pairs are judged. Thank you.")
    assert page.run("return document.querySelector('#bar').value") == 3
    assert judgements(bench) == [
        ("Ada", "plain", {"helpful": "first", "harmless": "bad"}),
        ("Ada", "hostile", {"helpful": "equal", "harmless": "skip"}),
        ("Ada", "dialogue", {"helpful": "second", "harmless": "equal"}),
    ]
    assert page.complaints() == []


def test_a_person_judges_by_touch_at_a_phones_width_and_every_target_is_large_enough(page, bench):
    page.look_like(390, 844, "dark", "reduce")
    begin(page)
    tops = page.run("return ['first', 'second'].map((id) => document.getElementById(id).getBoundingClientRect().top)")
    assert tops[0] < tops[1]
    sizes = page.run(
        "return [...document.querySelectorAll('button, input')].map((one) => one.getBoundingClientRect())"
        ".filter((box) => box.width).map((box) => [box.width, box.height])"
    )
    assert len(sizes) == 7 and min(min(size) for size in sizes) >= 44
    for verdict, criterion in (("second", "helpful"), ("equal", "harmless"), ("bad", "helpful"), ("skip", "harmless")):
        judging(page, criterion)
        page.tap(VERDICT.format(verdict))
    judging(page)
    assert judgements(bench) == [
        ("Ada", "plain", {"helpful": "second", "harmless": "equal"}),
        ("Ada", "hostile", {"helpful": "bad", "harmless": "skip"}),
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844), (844, 390)])
def test_text_of_any_kind_is_shown_as_it_is_and_bursts_nothing(page, bench, tmp_path, width, height, scheme):
    page.look_like(width, height, scheme, "reduce")
    bench.agreement = AGREEMENT
    begin(page, "N" * 70)
    for number, pair in enumerate(PAIRS, 1):
        asked = page.run("return [...document.querySelectorAll('#asked .text')].map((box) => box.textContent)")
        wanted = [turn["content"] for turn in pair["messages"]] if "messages" in pair else [pair["prompt"]]
        assert asked == wanted
        for answer in ("first", "second"):
            assert page.run("return document.getElementById(arguments[0]).textContent", answer) == pair[answer]
        assert page.run("return document.querySelectorAll('.text *').length") == 0
        fits(page)
        page.picture(tmp_path / f"{pair['pair']}.png")
        page.run("scrollTo(0, 200); document.querySelector('main').scrollTop = 200")
        judge(page, "1", "1")
        page.wait(lambda number=number: page.text("#count") == f"{number} of 3 judged")
        assert page.run("return [scrollY, document.querySelector('main').scrollTop]") == [0, 0]
    assert page.run("return document.title") == "Compare"
    assert page.complaints() == []


def test_a_criterion_may_have_any_name(page, bench):
    page.look_like(390, 844, "light", "reduce")
    names = bench.criteria = ("__proto__", "constructor", "<b>" + "w" * 57)
    bench.agreement = {name: {"pairs": 1, "percent": 0, "alpha": -0.5} for name in names}
    page.type("Ada\n")
    judge(page, "1", "2", criteria=names[:2])
    judging(page, names[2])
    fits(page)
    assert page.text("#steps") == f"__proto__: first\nconstructor: second\n{names[2]}: now"
    assert page.text("#agreement").startswith("__proto__: 0 % agree, α −0.50, 1 pair\n")
    page.type("0")
    page.wait(lambda: page.text("#count") == "1 of 3 judged")
    assert judgements(bench) == [("Ada", "plain", dict(zip(names, ("first", "second", "bad"), strict=True)))]


def test_one_goes_back_to_the_criterion_before_and_sees_what_was_judged(page, bench):
    begin(page)
    assert page.run("return document.querySelector('#back').getAttribute('aria-disabled')") == "true"
    page.type(f"u{KEYS['backspace']}")  # there is nothing before the first criterion
    for back in ("u", KEYS["backspace"]):
        page.type("1")
        judging(page, "harmless")
        assert page.text("#steps") == "helpful: first\nharmless: now"
        page.type(back)
        judging(page)
        assert page.text("[aria-pressed='true']").endswith("First is better")
    page.type("2")
    judging(page, "harmless")
    page.click("#back")
    judging(page)
    page.click(VERDICT.format("bad"))
    judge(page, "1", criteria=("harmless",))
    judging(page)
    assert judgements(bench) == [("Ada", "plain", {"helpful": "bad", "harmless": "first"})]


def test_a_double_press_judges_once_and_keys_are_ignored_while_sending(page, bench):
    begin(page)
    page.type("11")
    judging(page, "harmless")
    bench.seconds = 1.0
    page.type("22")
    page.wait(lambda: page.text("#question").startswith("Sending"))
    page.type("1su0")
    bench.seconds = 0.0
    judging(page)
    page.type(KEYS["backspace"])
    assert page.text("#steps") == "helpful: now\nharmless: to come"
    assert judgements(bench) == [("Ada", "plain", {"helpful": "first", "harmless": "second"})]


def test_keys_with_a_modifier_and_keys_in_the_field_of_the_name_judge_nothing(page, bench):
    begin(page, "1s0u")
    page.type(f"{KEYS['control']}s{KEYS['release']}")
    assert page.text("#steps") == "helpful: now\nharmless: to come"
    assert page.text("#who") == "1s0u" and bench.judged == []


@pytest.mark.parametrize(("status", "leaves"), [(400, True), (409, True), (503, False), (500, False)])
def test_a_refused_judgement_is_kept_and_sent_again(page, bench, status, leaves):
    begin(page)
    bench.refusals.append((status, "The file <b>is full</b>."))
    judge(page, "1", "2")
    page.wait(lambda: page.text("#error") == "The file <b>is full</b>.")
    assert page.run("return document.activeElement.textContent") == "Send again"
    assert page.run("return !document.querySelector('#leave').hidden") == leaves
    page.type(f"0{KEYS['enter']}")
    judging(page)
    assert judgements(bench) == [("Ada", "plain", {"helpful": "first", "harmless": "second"})]
    assert page.text("#error") == ""


def test_a_judgement_that_was_not_sent_is_changed_before_it_is(page, bench):
    begin(page)
    bench.refusals.append((503, "Come back later."))
    judge(page, "1", "2")
    page.wait(lambda: page.text("#error"))
    page.type("u")
    judge(page, "0", criteria=("harmless",))
    judging(page)
    assert judgements(bench) == [("Ada", "plain", {"helpful": "first", "harmless": "bad"})]


def test_a_judgement_outlives_a_server_that_is_gone_for_a_while(page, bench):
    bench.criteria = ("helpful",)
    begin(page)
    bench.gone = True
    page.type("2")
    page.wait(lambda: page.text("#error") == "The server does not answer.")
    bench.gone = False
    page.click("#again")
    page.wait(lambda: page.text("#count") == "1 of 3 judged")
    assert judgements(bench) == [("Ada", "plain", {"helpful": "second"})]


def test_a_pair_that_cannot_come_is_asked_for_again(page, bench):
    bench.refusals.append((503, "The model is gone."))
    page.type("Ada\n")
    page.wait(lambda: page.text("#error") == "The model is gone.")
    page.type("\n")
    judging(page)
    assert page.text("#asked .text") == PLAIN


def test_a_page_that_waits_says_so_and_for_how_long(page, bench):
    page.look_like(390, 844, "light", "reduce")
    bench.seconds = 3.0
    bench.pairs = [{**PAIRS[0], "first": HOSTILE}, *PAIRS[1:]]
    page.type("Ada\n")
    page.wait(lambda: page.text("#blank") == "Waiting for the next two answers …")
    page.wait(lambda: page.run("return document.querySelector('#blank').dataset.waited") == "2 s")
    judging(page)
    page.type("1")
    judge(page, "1", criteria=("harmless",))
    page.wait(lambda: page.text("#question") == "Sending, and waiting for the next two answers …")
    assert page.run("return document.querySelector('#pair').getAttribute('aria-busy')") == "true"
    page.run("document.querySelector('main').scrollTop = 400")
    over = page.run(
        "const box = document.querySelector('#first-title').getBoundingClientRect();"
        "return document.elementFromPoint(box.left + 30, box.top + 10).id"
    )
    assert over == "first-title"
    judging(page)


def test_a_page_loaded_again_goes_on_under_the_same_name_and_another_has_pairs_of_its_own(page, bench, port):
    begin(page)
    judge(page, "1", "1")
    judging(page)
    page.open(f"http://127.0.0.1:{port}/compare")
    judging(page)
    assert (page.text("#who"), page.text("#count")) == ("Ada", "1 of 3 judged")
    page.click("#who")
    page.run("document.querySelector('#annotator').select()")
    begin(page, "Grace & co")
    assert (page.text("#who"), page.text("#count"), page.text("#asked .text")) == ("Grace & co", "0 of 3 judged", PLAIN)
    judge(page, "2", "2")
    judging(page)
    both = {"helpful": "second", "harmless": "second"}
    assert judgements(bench)[1:] == [("Grace & co", "plain", both)]


def locked(page) -> None:
    """Waits until the page asks for the key."""
    page.wait(lambda: page.text("#error") == "This server wants its API key as Authorization: Bearer KEY.")
    page.wait(lambda: page.run("return document.activeElement.id") == "secret")


def test_the_key_is_asked_for_and_what_was_judged_meanwhile_is_sent_with_it(page, bench):
    bench.key = "right"
    page.type("Ada\n")
    locked(page)
    page.type("wrong\n")
    page.wait(lambda: bench.turned_away == 2)
    locked(page)
    page.type("right\n")
    judging(page)
    bench.key = "another"
    judge(page, "1", "2")
    locked(page)
    page.type("another\n")
    judging(page)
    assert judgements(bench) == [("Ada", "plain", {"helpful": "first", "harmless": "second"})]
    kept = page.run("return [JSON.stringify(localStorage), sessionStorage.getItem('key')]")
    assert kept == [json.dumps({"annotator": "Ada"}, separators=(",", ":")), "another"]


def test_all_is_done_by_the_keyboard_alone_with_the_focus_to_be_seen(page, bench):
    begin(page)
    for _ in range(12):
        page.type(KEYS["tab"])
        if page.run("return document.activeElement.dataset.verdict") == "second":
            break
    assert page.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.type(KEYS["enter"])
    judging(page, "harmless")
    assert page.run("return document.activeElement.dataset.verdict") == "second"
    page.type(" ")
    judging(page)
    assert page.run("return document.activeElement.dataset.verdict") == "second"
    assert judgements(bench) == [("Ada", "plain", {"helpful": "second", "harmless": "second"})]
