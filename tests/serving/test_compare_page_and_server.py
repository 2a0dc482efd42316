"""The page that compares answers in a real browser before the real server: what people judged is what the files say."""

import json
import time
from datetime import UTC, datetime, timedelta

import pytest
from support.browser import INSTALLED, browser
from support.serving import NAME, running, save_small, served_of
from support.standing_in import HOSTILE
from support.standing_in_compare import RIGHT_TO_LEFT, WIDE

from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.serving.comparisons import Comparing, read_comparisons
from megatron_lite.serving.settings import Settings

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(not INSTALLED, reason="chromium and chromedriver are not installed"),
]
ROWS = [
    {"prompt": HOSTILE, "answers": [HOSTILE, WIDE]},
    {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": RIGHT_TO_LEFT}],
        "chosen": RIGHT_TO_LEFT,
        "rejected": "W" * 700,
    },
    {"prompt": "reads a shard"},
]
KEYS = {"first": "1", "second": "2", "equal": "=", "bad": "0", "skip": "s"}


def saw(page) -> dict[str, object]:
    """What the page shows of a pair, in the words of a row."""
    texts = "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)"
    roles, asked, answers = (page.run(texts, where) for where in ("#asked h3", "#asked .text", "#answers .text"))
    if roles == ["Prompt"]:
        return {"prompt": asked[0], "answers": answers}
    turns = [{"role": role, "content": text} for role, text in zip(roles, asked, strict=True)]
    return {"messages": turns, "answers": answers}


def line(seen: dict[str, object], annotator: str, criterion: str, verdict: str) -> dict[str, object]:
    """Of a judgement in a file, but for its time."""
    who = {"criterion": criterion, "annotator": annotator}
    if verdict not in ("first", "second"):
        return {**seen, "judgement": verdict, **who}
    first, second = seen["answers"]
    context = {name: seen[name] for name in seen if name != "answers"}
    if verdict == "first":
        return {**context, "chosen": first, "rejected": second, "first": "chosen", **who}
    return {**context, "chosen": second, "rejected": first, "first": "rejected", **who}


def judge(page, annotator: str, verdicts: tuple[str, str], touch: bool) -> list[dict[str, object]]:
    """By both criteria; the lines that must come of it."""
    lines = []
    for criterion, verdict in zip(("helpful", "harmless"), verdicts, strict=True):
        page.wait(lambda criterion=criterion: page.text("#criterion") == criterion, 60)
        time.sleep(0.3)
        seen = saw(page)
        lines.append(line(seen, annotator, criterion, verdict))
        assert page.run("return document.documentElement.scrollWidth == innerWidth")
        page.tap(f"[data-verdict='{verdict}']") if touch else page.type(KEYS[verdict])
    return lines


def agreed(lines, criterion: str, pairs: int) -> int:
    """Percent of so many pairs on which the two who judged them said the same, but for who skipped one."""
    said: dict[str, list[str]] = {}
    for one in lines:
        if one["criterion"] == criterion and one.get("judgement") != "skip":
            about = json.dumps(one.get("prompt", one.get("messages")))
            said.setdefault(about, []).append(one.get("chosen", one.get("judgement")))
    both = [found for found in said.values() if len(found) == 2]
    assert len(both) == pairs
    return round(100 * sum(first == second for first, second in both) / pairs)


def lines_of(path) -> list[dict[str, object]]:
    """Without their times, each of which is of the last minutes."""
    found = [json.loads(one) for one in path.read_bytes().splitlines()]
    for one in found:
        age = datetime.now(UTC) - datetime.fromisoformat(one.pop("time"))
        assert timedelta(0) <= age < timedelta(minutes=10)
    return found


def test_what_two_people_judge_by_key_and_by_touch_stands_in_the_files_as_they_saw_it(tmp_path):
    served = served_of(save_small(tmp_path), SentencePieceTokenizer(tmp_path / "small.model"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    out = tmp_path / "out.jsonl"
    comparing = Comparing(read_comparisons(rows), out, tokens=12)
    settings = Settings(NAME, key="secret")
    with running(served, settings, comparing) as server, browser(tmp_path / "profile") as page:
        page.look_like(1280, 900, "light", "reduce")
        page.open(f"{server.address}/compare")
        page.wait(lambda: page.run("return document.activeElement.id") == "annotator")
        page.type("Ada\n")
        page.wait(lambda: page.run("return document.activeElement.id") == "secret")
        page.type("secret\n")
        lines = judge(page, "Ada", ("first", "second"), touch=False)
        page.wait(lambda: page.text("#count") == "1 of 3 judged")
        before = saw(page)
        page.open(f"{server.address}/compare")  # loaded again, it goes on with the same pair
        page.wait(lambda: page.text("#criterion") == "helpful")
        assert saw(page) == before
        lines += judge(page, "Ada", ("equal", "bad"), touch=False)
        lines += judge(page, "Ada", ("second", "skip"), touch=False)
        page.wait(lambda: page.text("#blank") == "All 3 pairs are judged. Thank you.")

        page.look_like(390, 844, "dark", "reduce")
        page.click("#who")
        page.run("document.querySelector('#annotator').select()")
        page.type("Grace\n")
        lines += judge(page, "Grace", ("first", "first"), touch=True)
        lines += judge(page, "Grace", ("equal", "second"), touch=True)
        lines += judge(page, "Grace", ("first", "bad"), touch=True)
        page.wait(lambda: page.text("#blank") == "All 3 pairs are judged. Thank you.")
        helpful, harmless = page.text("#agreement").split("\n")
        assert helpful.startswith(f"helpful: {agreed(lines, 'helpful', 3)} % agree, α ") and helpful.endswith("3 pairs")
        assert harmless.startswith(f"harmless: {agreed(lines, 'harmless', 2)} % agree, α ")
        assert harmless.endswith("2 pairs")  # the one that was skipped by one of the two counts for neither
        assert [one for one in page.complaints() if "401" not in one] == []

    def sorted_lines(some):
        return sorted(json.dumps(one, sort_keys=True) for one in some)

    preferences = [one for one in lines if "chosen" in one]
    assert sorted_lines(lines_of(out)) == sorted_lines(preferences)
    ties = [one for one in lines if "judgement" in one]
    assert sorted_lines(lines_of(out.with_name("out.ties.jsonl"))) == sorted_lines(ties)
