"""Addresses are dropped by lists of domains and addresses and by words of three strengths."""

from pathlib import Path

import numpy as np
import pytest

from megatron_lite.curation import _lists
from megatron_lite.curation.documents import Document
from megatron_lite.curation.rules.urls import Urls, parents
from megatron_lite.errors import UsageError

LIST = """# gambling
Casino.Example
bad.site.example.   # with a comment
0.0.0.0 tracker.example
||ads.example^
! of an ad blocker
http://www.forum.example/adult/
pages.example/a/b
xn--bcher-kva.example

"""


@pytest.fixture
def blocked(tmp_path: Path) -> str:
    path = tmp_path / "domains"
    path.write_text(LIST, encoding="utf-8")
    return str(path)


def page(url: str | None) -> Document:
    return Document("web/0/0", "text", "web", url=url)


@pytest.mark.parametrize(
    ("url", "listed"),
    [
        ("https://casino.example/", "casino.example"),
        ("http://www.CASINO.example:8080/a?b", "casino.example"),
        ("http://win.big.casino.example./x", "casino.example"),
        ("http://mycasino.example/", None),
        ("http://casino.example.org/", None),
        ("http://site.example/", None),
        ("http://bad.site.example", "bad.site.example"),
        ("https://tracker.example/t.js", "tracker.example"),
        ("https://ads.example", "ads.example"),
        ("https://forum.example/adult/1", "forum.example/adult"),
        ("https://forum.example/adulthood", None),
        ("https://forum.example/", None),
        ("https://pages.example/a/b/c", "pages.example/a/b"),
        ("https://pages.example/a", None),
        ("https://xn--bcher-kva.example/", "xn--bcher-kva.example"),
        ("not an address", None),
        ("http://[::1", None),
        ("", None),
        (None, None),
    ],
)
def test_a_listed_domain_takes_those_below_it_and_an_address_its_pages(blocked: str, url: str, listed: str) -> None:
    drop = Urls(blocked=(blocked,))(page(url))
    assert (drop and drop.rule, drop and drop.detail) == (
        ("urls.blocked", f"{listed} stands in {blocked}") if listed else (None, None)
    )


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://foox-vid.eosbar.example/a", "urls.strict"),
        ("http://www.free-porn.example/", "urls.strict"),
        ("http://a.example/orgy/1", "urls.hard"),
        ("http://a.example/porgy-and-bess", None),
        ("http://a.example/sex-webcam", "urls.soft"),
        ("http://a.example/sex-education", None),
        ("http://a.example/webcam/webcam", None),
        ("http://sussex.example/escortshire", None),
        ("https://docs.example/fetishism", None),
    ],
)
def test_words_drop_by_their_strength(url: str, reason: str | None) -> None:
    drop = Urls()(page(url))
    assert (drop and drop.rule) == reason


def test_the_words_and_their_number_can_be_set() -> None:
    rule = Urls(strict=("Foo-Bar",), hard=("Baz",), soft=("a", "b", "c"), max_soft=2)
    assert rule(page("http://x.example/afoo/barb")).rule == "urls.strict"
    assert rule(page("http://x.example/baz")).detail == "the word 'baz' in http://x.example/baz"
    assert rule(page("http://x.example/a/b")) is None
    assert rule(page("http://x.example/c/a/b")).detail == "3 is above 2: a, b, c in http://x.example/c/a/b"
    nothing = Urls(strict=(), hard=(), soft=(), max_soft=None)
    assert nothing(page("http://xvideos.porn.example/sex/webcam")) is None


def test_what_a_list_may_name_to_mean_an_address() -> None:
    assert parents("https://www.a.b.example/c//d?e=f") == [
        "a.b.example",
        "b.example",
        "a.b.example/c",
        "a.b.example/c/d",
        "a.b.example/c/d?e=f",
    ]
    assert parents("http://localhost/") == ["localhost"]


def test_a_list_is_read_into_ascending_hashes_of_its_addresses() -> None:
    names = ["casino.example", "bad.site.example", "tracker.example", "ads.example", "forum.example/adult"]
    names += ["pages.example/a/b", "xn--bcher-kva.example"]
    expected = np.sort(np.array([_lists.address_hash(name) for name in names], np.uint64))
    assert np.array_equal(_lists.listed_hashes(LIST.encode() * 2), expected)
    assert _lists.listed_hashes(b"").size == 0


def test_a_list_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match=r"urls\.blocked = nowhere/domains: no such file"):
        Urls(blocked=("nowhere/domains",))
