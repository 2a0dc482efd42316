"""The page as it lies in its file: what it may load and run, and that each field has its name."""

import re
from pathlib import Path

import pytest
from support.elements import Elements, hash_of

PAGE = Path(__file__).parent.parent.parent / "megatron_lite" / "serving" / "page.html"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def elements() -> Elements:
    return Elements(TEXT)


@pytest.fixture(scope="module")
def policy(elements) -> dict[str, list[str]]:
    return elements.policy()


@pytest.mark.parametrize("kind", ["script", "style"])
def test_the_policy_lets_the_files_own_script_and_style_alone_run(elements, policy, kind):
    (inline,) = elements.inline[kind]
    assert policy[f"{kind}-src"] == [hash_of(inline)]


def test_the_policy_forbids_all_that_it_does_not_name(policy):
    allowed = {name: sources for name, sources in policy.items() if name not in ("script-src", "style-src")}
    assert allowed == {
        "default-src": ["'none'"],
        "connect-src": ["'self'"],
        "img-src": ["data:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "require-trusted-types-for": ["'script'"],
    }


def test_nothing_names_another_address(elements):
    assert not re.findall(r"https?:|//[a-z0-9.-]+\.[a-z]{2}|@import|url\(", TEXT, re.IGNORECASE)
    linked = [a.get("src") or a.get("href") for _, a in elements.found if "src" in a or "href" in a]
    assert linked == ["data:,"]


def test_paths_are_relative_so_that_a_proxy_may_put_the_page_below_its_own(elements):
    (script,) = elements.inline["script"]
    assert sorted(re.findall(r'call\("([^"]+)"', script)) == ["health", "v1/chat/completions", "v1/models"]


def test_a_models_text_is_put_in_as_text_alone():
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(|srcdoc", TEXT)


def test_no_element_has_a_script_or_a_style_of_its_own(elements):
    assert not [(tag, name) for tag, a in elements.found for name in a if name == "style" or name.startswith("on")]


def test_every_field_has_a_label_and_every_button_words(elements):
    fields = {a.get("id") for tag, a in elements.found if tag in ("input", "textarea", "select")}
    labelled = {a.get("for") for tag, a in elements.found if tag == "label"}
    assert fields == labelled == {"system", "temperature", "top_p", "max_tokens", "seed", "secret", "message"}
    assert all(re.sub(r"<[^>]*>", "", words).strip() for words in re.findall(r"<button[^>]*>(.*?)</button>", TEXT))


def test_the_key_is_kept_by_the_tab_alone():
    assert "localStorage" not in TEXT and "document.cookie" not in TEXT and "indexedDB" not in TEXT
    assert set(re.findall(r"sessionStorage\.\w+\(\"(\w+)\"", TEXT)) == {"key"}


def test_what_moves_moves_only_for_those_who_do_not_mind():
    (style,) = re.findall(r"<style>(.*?)</style>", TEXT, re.DOTALL)
    calm, _, moving = style.partition("@media (prefers-reduced-motion: no-preference)")
    assert "animation" in moving and not re.findall("animation|transition|scroll-behavior", calm)
