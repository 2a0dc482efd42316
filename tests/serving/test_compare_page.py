"""The page that compares answers as it lies in its file: what it may load and run, and that all of it has words."""

import re
from pathlib import Path

import pytest
from support.elements import Elements, hash_of

PAGE = Path(__file__).parent.parent.parent / "megatron_lite" / "serving" / "compare.html"
TEXT = PAGE.read_text(encoding="utf-8")
KEYS = {"first": {"1"}, "second": {"2"}, "equal": {"3", "="}, "bad": {"0"}, "skip": {"s"}}


@pytest.fixture(scope="module")
def elements() -> Elements:
    return Elements(TEXT)


@pytest.fixture(scope="module")
def script(elements) -> str:
    (inline,) = elements.inline["script"]
    return inline


@pytest.mark.parametrize("kind", ["script", "style"])
def test_the_policy_lets_the_files_own_script_and_style_alone_run(elements, kind):
    (inline,) = elements.inline[kind]
    assert elements.policy()[f"{kind}-src"] == [hash_of(inline)]


def test_the_policy_forbids_all_that_it_does_not_name(elements):
    policy = elements.policy()
    assert {name: policy[name] for name in policy if name not in ("script-src", "style-src")} == {
        "default-src": ["'none'"],
        "connect-src": ["'self'"],
        "img-src": ["data:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "require-trusted-types-for": ["'script'"],
    }


def test_nothing_names_another_address(elements):
    assert not re.findall(r"https?:|//[a-z0-9.-]+\.[a-z]{2}|@import|url\(", TEXT, re.IGNORECASE)
    assert [a.get("src") or a.get("href") for _, a in elements.found if "src" in a or "href" in a] == ["data:,"]


def test_paths_are_relative_so_that_a_proxy_may_put_the_page_below_its_own(script):
    assert sorted(re.findall(r'request\("([^"]+)"', script)) == ["compare/judge", "compare/next?annotator="]
    assert script.count("fetch(") == 1


def test_a_models_text_is_put_in_as_text_alone():
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(|srcdoc", TEXT)
    assert "white-space: pre-wrap" in TEXT


def test_no_element_has_a_script_or_a_style_of_its_own(elements):
    assert not [(tag, name) for tag, a in elements.found for name in a if name == "style" or name.startswith("on")]


def test_every_judgement_has_a_button_that_names_its_key_and_a_line_says_all_keys(elements, script):
    buttons = {a["data-verdict"]: set(a["aria-keyshortcuts"].split()) for _, a in elements.found if "data-verdict" in a}
    assert buttons == KEYS
    (table,) = re.findall(r"const KEYS = \{(.*?)\}", script)
    bound = re.findall(r'"?([^\s",]+?)"?: "(\w+)"', table)
    assert {(key, verdict) for verdict, keys in KEYS.items() for key in keys} == set(bound)
    (line,) = re.findall(r'<p id="keys"[^>]*>(.*?)</p>', TEXT)
    assert line == "Keys: 1 first, 2 second, 3 or = equal, 0 both bad, s skip, Backspace or u goes back."
    back = next(a for _, a in elements.found if a.get("id") == "back")
    assert back["aria-keyshortcuts"] == "Backspace u"


def test_every_field_has_a_label_and_every_button_words(elements):
    fields = {a.get("id") for tag, a in elements.found if tag in ("input", "textarea", "select")}
    assert fields == {a.get("for") for tag, a in elements.found if tag == "label"} == {"annotator", "secret"}
    buttons = dict(re.findall(r"<button([^>]*)>(.*?)</button>", TEXT))
    wordless = [given for given, words in buttons.items() if not re.sub(r"<kbd.*?</kbd>|<[^>]*>", "", words).strip()]
    assert wordless == [' id="who" type="button" hidden']
    assert re.search(r'part\("who"\)\.setAttribute\("aria-label"', TEXT)


def test_what_changes_is_read_out_by_screen_readers(elements):
    spoken = {a.get("id"): a["role"] for _, a in elements.found if a.get("role") in ("status", "alert")}
    assert spoken == {"blank": "status", "ask": "status", "error": "alert"}


def test_the_browser_keeps_the_name_and_the_tab_the_key():
    assert set(re.findall(r"localStorage\.\w+\(\"(\w+)\"", TEXT)) == {"annotator"}
    assert set(re.findall(r"sessionStorage\.\w+\(\"(\w+)\"", TEXT)) == {"key"}
    assert "document.cookie" not in TEXT and "indexedDB" not in TEXT


def test_what_moves_moves_only_for_those_who_do_not_mind(elements):
    (style,) = elements.inline["style"]
    calm, _, moving = style.partition("@media (prefers-reduced-motion: no-preference)")
    assert "animation" in moving and not re.findall("animation|transition|scroll-behavior", calm)
