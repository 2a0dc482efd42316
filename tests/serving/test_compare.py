"""People compare answers on a server over a small model: what they are shown, and what is written of it."""

import http.client
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from support.serving import LONGEST, NAME, chat_ids, offline, running

from megatron_lite.alignment.dialogues import Continuation, Dialogue, Pair, read_criterion, read_pair
from megatron_lite.alignment.rows import parsed, read_rows
from megatron_lite.errors import DataError, UsageError
from megatron_lite.inference.sampling import Sampling
from megatron_lite.serving.comparisons import Comparing, read_comparisons
from megatron_lite.serving.desk import Desk
from megatron_lite.serving.records import Records
from megatron_lite.serving.refusals import Refusal
from megatron_lite.serving.settings import Settings

CHAT = [{"role": "system", "content": "the model"}, {"role": "user", "content": "reads a <b>shard</b>"}]
GIVEN = [
    {"prompt": "the model", "answers": ["<script>one</script>", "zwei\u2028\n"]},
    {"messages": CHAT, "chosen": "good", "rejected": "bad"},
]
BOTH = ("helpful", "harmless")


class Person:
    """Somebody who judges, over a connection of their own for each request."""

    def __init__(self, server, name: str, key: str | None = None):
        self.server, self.name, self.key = server, name, key

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        host, _, port = self.server.address.removeprefix("http://").partition(":")
        told = {"Content-Type": "application/json"} if body is not None else {}
        if self.key is not None:
            told["Authorization"] = f"Bearer {self.key}"
        text = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        with closing(http.client.HTTPConnection(host, int(port), timeout=60)) as connection:
            connection.request(method, path, text, told | headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def next(self) -> dict[str, Any]:
        status, tree = self.ask("GET", f"/compare/next?annotator={quote(self.name)}")
        assert status == 200, tree
        return tree

    def say(self, pair: str, judgements: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        return self.ask("POST", "/compare/judge", {"annotator": self.name, "pair": pair, "judgements": judgements})

    def judge(self, shown: Mapping[str, Any], *verdicts: str) -> dict[str, Any]:
        status, tree = self.say(shown["pair"], dict(zip(shown["criteria"], verdicts, strict=True)))
        assert status == 200, tree
        return tree

    def refused(self, pair: str, judgements: Mapping[str, str]) -> tuple[int, str]:
        status, tree = self.say(pair, judgements)
        return status, tree["error"]["message"]


def comparing(folder: Path, rows, **options) -> Comparing:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Comparing(read_comparisons(path), folder / "out.jsonl", **options)


def lines(folder: Path, name: str = "out") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_bytes().split(b"\n") if line]


def without_time(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "time"}


@pytest.fixture
def settings():
    return Settings(NAME)


def test_a_preference_is_a_line_of_the_reward_format_as_soon_as_it_is_taken(served, settings, tmp_path):
    with running(served, settings, comparing(tmp_path, GIVEN)) as server:
        person = Person(server, "Ada Ü")
        shown = person.next()
        assert shown == {
            "pair": shown["pair"], "prompt": "the model", "first": shown["first"], "second": shown["second"],
            "criteria": list(BOTH), "judged": 0, "total": 2,
            "agreement": {criterion: {"pairs": 0, "percent": None, "alpha": None} for criterion in BOTH},
        }  # fmt: skip
        assert sorted([shown["first"], shown["second"]]) == sorted(GIVEN[0]["answers"])
        after = person.judge(shown, "second", "first")
        found = lines(tmp_path)
        assert [without_time(row) for row in found] == [
            {"prompt": "the model", "chosen": shown["second"], "rejected": shown["first"], "criterion": "helpful",
             "annotator": "Ada Ü", "first": "rejected"},
            {"prompt": "the model", "chosen": shown["first"], "rejected": shown["second"], "criterion": "harmless",
             "annotator": "Ada Ü", "first": "chosen"},
        ]  # fmt: skip
        for row in found:
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", row["time"])
            assert timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(row["time"]) < timedelta(minutes=5)
        assert after["messages"] == CHAT and {after["first"], after["second"]} == {"good", "bad"}
        assert (after["judged"], after["total"]) == (1, 2)
    assert lines(tmp_path, "out.ties") == []


def test_what_is_no_preference_goes_to_a_file_of_its_own(served, settings, tmp_path):
    with running(served, settings, comparing(tmp_path, GIVEN, criteria=("helpful", "harmless", "brief"))) as server:
        person = Person(server, "Ada")
        shown = person.next()
        person.judge(shown, "equal", "bad", "skip")
        assert [without_time(row) for row in lines(tmp_path, "out.ties")] == [
            {"prompt": "the model", "answers": [shown["first"], shown["second"]], "judgement": judgement,
             "criterion": criterion, "annotator": "Ada"}
            for judgement, criterion in (("equal", "helpful"), ("bad", "harmless"), ("skip", "brief"))
        ]  # fmt: skip
    assert lines(tmp_path) == []


def test_reward_training_reads_every_line_and_ties_are_none_of_them(served, settings, tmp_path):
    with running(served, settings, comparing(tmp_path, GIVEN)) as server:
        person = Person(server, "Ada")
        seen = [person.next()]
        seen.append(person.judge(seen[0], "first", "equal"))
        person.judge(seen[1], "second", "second")
    rows = [parsed(row) for batch in read_rows(tmp_path / "out.jsonl") for _, row in batch]
    assert [read_criterion(row) for row in rows] == ["helpful", "helpful", "harmless"]
    (one, other) = seen
    said = [Dialogue((*CHAT, {"role": "assistant", "content": other[name]}), 2) for name in ("second", "first")]
    preferred = Pair(*said)
    assert [read_pair(row) for row in rows] == [
        Pair(Continuation("the model", one["first"]), Continuation("the model", one["second"])), preferred, preferred,
    ]  # fmt: skip


def test_which_answer_stands_first_is_drawn_for_each_pair_and_annotator_and_stays(served, settings, tmp_path):
    rows = [{"prompt": f"p{number}", "answers": ["a", "b"]} for number in range(40)]
    with running(served, settings, comparing(tmp_path, rows, criteria=("helpful",))) as server:
        firsts = {}
        for name in ("Ada", "Grace"):
            person = Person(server, name)
            shown, order = person.next(), []
            while shown["pair"] is not None:
                assert person.next() == shown
                order.append(shown["first"])
                shown = person.judge(shown, "first")
            firsts[name] = order
    # Each order of 40 drawn alike: outside these with a chance below 1e-4.
    assert all(5 <= order.count("a") <= 35 for order in firsts.values())
    assert 5 <= sum(a == b for a, b in zip(firsts["Ada"], firsts["Grace"], strict=True)) <= 35
    recorded = [(row["annotator"], row["chosen"], row["first"]) for row in lines(tmp_path)]
    assert recorded == [(name, first, "chosen") for name, order in firsts.items() for first in order]


def test_nothing_that_a_page_is_told_says_which_answer_was_preferred_before(served, settings, tmp_path):
    with running(served, settings, comparing(tmp_path, GIVEN[1:])) as server:
        shown = [Person(server, f"person {number}").next() for number in range(20)]
    assert Counter(one["first"] for one in shown).keys() == {"good", "bad"}
    assert len({one["pair"] for one in shown}) == 2  # one for each order, whoever asks
    assert not {"chosen", "rejected", "answers", "seeds"} & shown[0].keys()


def test_a_judged_pair_is_not_shown_again_after_the_server_starts_again(served, settings, tmp_path):
    with running(served, settings, comparing(tmp_path, GIVEN)) as server:
        person = Person(server, "Ada")
        person.judge(person.next(), "skip", "first")
    with running(served, settings, comparing(tmp_path, GIVEN)) as server:
        shown = Person(server, "Ada").next()
        assert "messages" in shown and (shown["judged"], shown["total"]) == (1, 2)
        assert Person(server, "Grace").next()["judged"] == 0
    with running(served, settings, comparing(tmp_path, GIVEN, criteria=("helpful", "brief", "harmless"))) as server:
        person = Person(server, "Ada")
        shown = person.next()
        assert shown["prompt"] == "the model" and shown["criteria"] == ["brief"]
        person.judge(shown, "second")
    assert Counter(row["criterion"] for row in lines(tmp_path)) == {"harmless": 1, "brief": 1}


def test_a_judgement_of_what_was_seen_before_the_server_started_again_is_of_that_order(served, settings, tmp_path):
    some, person = comparing(tmp_path, GIVEN[:1], criteria=("helpful",)), Person(None, "Ada")
    with running(served, settings, some) as person.server:
        shown = person.next()
    turned = False
    for _ in range(30):  # until a server draws the other order
        with running(served, settings, some) as person.server:
            if turned := person.next()["first"] == shown["second"]:
                person.judge(shown, "first")
                break
    assert turned
    assert [(row["chosen"], row["first"]) for row in lines(tmp_path)] == [(shown["first"], "chosen")]


def test_the_same_judgement_once_more_is_taken_once_and_another_one_not(served, settings, tmp_path):
    with running(served, settings, comparing(tmp_path, GIVEN)) as server:
        person = Person(server, "Ada")
        shown = person.next()
        both = {"helpful": "first", "harmless": "equal"}
        assert person.say(shown["pair"], both) == person.say(shown["pair"], both)
        stays = (409, "you have judged this pair in another way before: that stays")
        assert person.refused(shown["pair"], {"helpful": "second"}) == stays
        assert person.refused(shown["pair"], {"helpful": "first", "harmless": "bad"}) == stays
    assert (len(lines(tmp_path)), len(lines(tmp_path, "out.ties"))) == (1, 1)


def test_many_annotators_at_once_write_each_line_whole_and_once(served, settings, tmp_path):
    rows = [{"prompt": f"p{number}", "answers": ["a" * 3000, "b" * 3000]} for number in range(6)]
    people, failed = 8, []

    def judge_all(person: Person) -> None:
        try:
            shown = person.next()
            while shown["pair"] is not None:
                shown = person.judge(shown, "first", "bad")
        except BaseException as error:
            failed.append(error)

    with running(served, settings, comparing(tmp_path, rows)) as server:
        # The last two are one person in two tabs: who answers last has judged what is judged already.
        names = [f"person {min(number, people - 2)}" for number in range(people)]
        threads = [threading.Thread(target=judge_all, args=(Person(server, name),)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []
    for name in ("out", "out.ties"):
        counts = Counter((row["annotator"], row["prompt"], row["criterion"]) for row in lines(tmp_path, name))
        assert set(counts.values()) == {1} and len(counts) == (people - 1) * len(rows)


def test_what_the_disk_refuses_is_said_and_judged_again_without_a_line_twice(served, settings, tmp_path, monkeypatch):
    with running(served, settings, comparing(tmp_path, GIVEN)) as server:
        person = Person(server, "Ada")
        shown = person.next()
        real = Records.add

        def full(records: Records, rows) -> None:
            if records.path.name == "out.jsonl":
                raise OSError(28, "No space left on device")
            real(records, rows)

        monkeypatch.setattr(Records, "add", full)
        both = {"helpful": "equal", "harmless": "second"}
        said = "out.jsonl cannot be written, and nothing was: No space left on device"
        assert person.refused(shown["pair"], both) == (507, said)
        assert person.next()["criteria"] == ["harmless"]  # the tie was written before
        monkeypatch.undo()
        person.judge(shown, "equal", "second")
        assert person.next()["messages"] == CHAT
    assert (len(lines(tmp_path)), len(lines(tmp_path, "out.ties"))) == (1, 1)


def test_agreement_is_of_what_was_judged_whatever_the_orders_were(served, settings, tmp_path):
    rows = [{"prompt": f"p{number}", "answers": ["a", "b"]} for number in range(3)]
    with running(served, settings, comparing(tmp_path, rows, criteria=("helpful",))) as server:
        for name, choices in {"Ada": "aab", "Grace": "abb"}.items():
            person = Person(server, name)
            for choice in choices:
                shown = person.next()
                person.judge(shown, "first" if shown["first"] == choice else "second")
        person = Person(server, "Tim")
        last = person.judge(person.next(), "skip")
        found = last["agreement"]["helpful"]
        assert (found["pairs"], found["percent"]) == (3, pytest.approx(200 / 3))
    with running(served, settings, comparing(tmp_path, rows, criteria=("helpful",))) as server:
        assert Person(server, "Zoe").next()["agreement"]["helpful"] == found


QUESTIONS = [{"prompt": "the model reads"}, {"messages": CHAT}, {"prompt": "the model reads"}]
WAY = {"temperature": 1.3, "tokens": 12, "criteria": ("helpful",)}


def test_questions_are_answered_twice_by_the_model_as_offline_generation_would(served, settings, tmp_path):
    tokenizer = served.opened.tokenizer
    with running(served, settings, comparing(tmp_path, QUESTIONS, **WAY)) as server:
        person, shown = Person(server, "Ada"), []
        tree = person.next()
        while tree["pair"] is not None:
            shown.append(tree)
            tree = person.judge(tree, "first")
    assert [one.get("prompt", one.get("messages")) for one in shown] == ["the model reads", CHAT, "the model reads"]
    assert tree["total"] == tree["judged"] == 3
    written = lines(tmp_path, "out.answers")
    assert len(written) == 3
    assert all(row["model"] == NAME and row["temperature"] == 1.3 for row in written)
    for row in written:
        said = [(one["role"], one["content"]) for one in row.get("messages", ())]
        ids = chat_ids(tokenizer, *said) if said else tuple(tokenizer.encode_prompt(row["prompt"]))
        truth = [offline(served, ids, Sampling(1.3), 12, seed=seed)[0].text for seed in row["seeds"]]
        assert row["answers"] == truth and truth[0] != truth[1] and all(text.strip() for text in truth)
    pairs = {frozenset(row["answers"]) for row in written}
    assert len(pairs) == 3 and pairs == {frozenset((one["first"], one["second"])) for one in shown}


def test_answers_are_written_ahead_and_kept_for_everybody_and_a_server_that_starts_again(served, settings, tmp_path):
    some = comparing(tmp_path, [{"prompt": f"the model {number}"} for number in range(8)], **WAY)
    with running(served, settings, some) as server:
        first = Person(server, "Ada").next()
        end = time.monotonic() + 30
        while len(lines(tmp_path, "out.answers")) < 5 and time.monotonic() < end:  # the first, and four ahead of it
            time.sleep(0.02)
    assert sorted(row["prompt"] for row in lines(tmp_path, "out.answers")) == [f"the model {n}" for n in range(5)]
    before = (tmp_path / "out.answers.jsonl").read_bytes()
    with running(served, settings, some) as server:
        seen = {frozenset((one["first"], one["second"])) for one in (first, Person(server, "Grace").next())}
    assert len(seen) == 1
    assert (tmp_path / "out.answers.jsonl").read_bytes() == before


def test_two_people_who_come_to_a_question_at_once_see_the_same_answers(served, settings, tmp_path):
    with running(served, settings, comparing(tmp_path, QUESTIONS[:1], **WAY)) as server:
        seen = []
        people = [Person(server, f"person {number}") for number in range(4)]
        threads = [threading.Thread(target=lambda person=person: seen.append(person.next())) for person in people]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(lines(tmp_path, "out.answers")) == 1
    assert {frozenset((one["first"], one["second"])) for one in seen} == {
        frozenset(lines(tmp_path, "out.answers")[0]["answers"])
    }
    assert len(seen) == 4


def test_a_question_to_which_the_model_has_one_answer_alone_is_left_out(served, settings, tmp_path):
    rows = [{"prompt": "the model reads"}, GIVEN[0]]
    cold = comparing(tmp_path, rows, temperature=1e-6, tokens=12, criteria=("helpful",))
    with running(served, settings, cold) as server:
        person = Person(server, "Ada")
        shown = person.next()
        assert (shown["prompt"], shown["total"]) == ("the model", 1)
        assert person.judge(shown, "bad")["pair"] is None
    assert lines(tmp_path, "out.answers") == []


def test_a_full_queue_is_said_and_the_pair_comes_when_there_is_room(served, settings, tmp_path, monkeypatch):
    def full(desk: Desk, asked: object) -> None:
        raise Refusal(429, "no room")

    with running(served, settings, comparing(tmp_path, QUESTIONS[:1], **WAY)) as server:
        person = Person(server, "Ada")
        monkeypatch.setattr(Desk, "enter", full)
        status, tree = person.ask("GET", "/compare/next?annotator=Ada")
        assert (status, tree["error"]["message"]) == (429, "no room")
        monkeypatch.undo()
        assert person.next()["prompt"] == "the model reads"


def test_questions_that_the_model_cannot_answer_are_named_before_the_server_starts(served, settings, tmp_path):
    rows = [{"prompt": "the model"}, {"prompt": "many words " * LONGEST}, {"messages": [CHAT[0] | {"role": "user"}]}]
    some = comparing(tmp_path, rows)
    with pytest.raises(DataError, match=r"rows\.jsonl line 2 cannot be answered: the prompt has \d+ tokens"):
        running(served, settings, some).__enter__()
    no_template = type(served)(served.opened, None, served.limits, served.sizes)
    with pytest.raises(DataError, match=r"line 2 cannot .*; 1 more cannot be judged either: line 3"):
        running(no_template, settings, some).__enter__()


def test_the_page_is_open_and_all_else_wants_the_key(served, tmp_path):
    with running(served, Settings(NAME, key="secret"), comparing(tmp_path, GIVEN)) as server:
        stranger = Person(server, "Ada")
        assert stranger.ask("GET", "/compare/next?annotator=Ada")[0] == 401
        assert stranger.say("x", {"helpful": "first"})[0] == 401
        host, _, port = server.address.removeprefix("http://").partition(":")
        with closing(http.client.HTTPConnection(host, int(port))) as connection:
            connection.request("GET", "/compare")
            answer = connection.getresponse()
            assert answer.status == 200 and answer.getheader("Content-Type") == "text/html; charset=utf-8"
            assert answer.getheader("Content-Security-Policy") == "frame-ancestors 'none'"
            answer.read()
        assert Person(server, "Ada", key="secret").next()["total"] == 2


def test_a_server_that_compares_nothing_has_no_such_paths(served, settings):
    with running(served, settings) as server:
        person = Person(server, "Ada")
        assert [person.ask("GET", path)[0] for path in ("/compare", "/compare/next?annotator=Ada")] == [404, 404]


@pytest.mark.parametrize("name", ["", " Ada", "Ada\n", "x" * 81, "a\u202eb", "\x00"])
def test_names_that_lines_should_not_hold_are_refused(served, settings, tmp_path, name):
    with running(served, settings, comparing(tmp_path, GIVEN)) as server:
        person = Person(server, "Ada")
        status, tree = person.ask("GET", f"/compare/next?annotator={quote(name)}")
        assert (status, tree["error"]["param"]) == (400, "annotator")
        body = {"annotator": name, "pair": person.next()["pair"], "judgements": {"helpful": "first"}}
        status, tree = person.ask("POST", "/compare/judge", body)
        assert (status, tree["error"]["param"]) == (400, "annotator")
    assert lines(tmp_path) == []


def test_bodies_that_say_something_else_are_refused_by_name(served, settings, tmp_path):
    with running(served, settings, comparing(tmp_path, GIVEN)) as server:
        person = Person(server, "Ada")
        pair = person.next()["pair"]
        whole = {"annotator": "Ada", "pair": pair, "judgements": {"helpful": "first"}}
        for change, said in (
            ({"judgements": {"kind": "first"}}, "'kind' is no criterion here: must be one of helpful, harmless"),
            ({"judgements": {"helpful": "third"}}, "judgements.helpful"),
            ({"judgements": {}}, "judgements"),
            ({"pair": 7}, "pair"),
            ({"order": "chosen"}, "order is not supported"),
            ({"annotator": "\ud800"}, "no JSON object"),
        ):
            status, tree = person.ask("POST", "/compare/judge", whole | change)
            assert status == 400 and said in tree["error"]["message"]
        assert person.refused("0" * 32, {"helpful": "first"}) == (409, "this pair is no longer here to be judged")
        assert person.ask("POST", "/compare/judge", b"[]")[0] == 400
        assert person.ask("POST", "/compare/judge", b"{}", **{"Content-Type": "text/plain"})[0] == 415
        assert person.ask("POST", "/compare/judge", b'"' + b"x" * 3_000_000 + b'"')[0] == 413
        assert person.ask("GET", "/compare/judge")[0] == 405
    assert lines(tmp_path) == lines(tmp_path, "out.ties") == []


@pytest.mark.parametrize(
    ("name", "row", "what"),
    [
        ("out", {"prompt": "p", "chosen": "a", "rejected": "b"}, "has the criterion None: must be a text"),
        ("out", {"chosen": "a", "rejected": "b"}, "must have either prompt or messages"),
        ("out.ties", {"prompt": "p", "answers": ["a"]}, "has no two texts as answers"),
        ("out.answers", {"prompt": "p", "answers": [1, 2]}, "has no two texts as answers"),
    ],
)
def test_a_file_that_holds_something_else_is_named_and_left_alone(served, settings, tmp_path, name, row, what):
    path = tmp_path / f"{name}.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=rf"{name}\.jsonl line 1 {what}"):
        running(served, settings, comparing(tmp_path, GIVEN)).__enter__()
    assert path.read_text() == json.dumps(row) + "\n"


def test_two_servers_do_not_write_the_same_file(served, settings, tmp_path):
    some = comparing(tmp_path, GIVEN)
    busy = r"out\.jsonl is being written by another process"
    with running(served, settings, some), pytest.raises(UsageError, match=busy):
        running(served, settings, some).__enter__()
