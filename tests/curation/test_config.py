"""What is wrong in a configuration is one line that names the key, its value and the nearest valid name."""

import copy
from typing import Any

import pytest

from megatron_lite.config.load import check_tree, dump
from megatron_lite.curation.config import CurationConfig, load_curation, rules_of
from megatron_lite.curation.rules.c4 import C4
from megatron_lite.curation.rules.gopher_quality import GopherQuality
from megatron_lite.errors import UsageError

TREE = {
    "output": "out",
    "sources": {
        "web": {"kind": "jsonl", "paths": ["a"], "rules": "web"},
        "short": {
            "kind": "jsonl",
            "paths": ["b"],
            "rules": "web",
            "options": {"gopher_quality": {"min_words": 3}, "c4": None},
        },
        "bare": {"kind": "files", "paths": ["c"], "content": "code"},
    },
    "rules": {"web": {"gopher_quality": {"min_words": 20, "max_hashes": None}, "c4": None}},
}


def changed(path: str, value: Any) -> dict:
    tree = copy.deepcopy(TREE)
    *sections, name = path.split(".")
    inner = tree
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[name] = value
    return tree


def test_a_source_has_its_sets_rules_in_order_with_its_own_options():
    config = check_tree(TREE, CurationConfig)
    assert rules_of(config, "web") == (GopherQuality(min_words=20, max_hashes=None), C4())
    assert rules_of(config, "short") == (GopherQuality(min_words=3, max_hashes=None),)
    assert rules_of(config, "bare") == ()


COMPLAINTS = [
    ("shard_byte", 1, "shard_byte = 1: unknown key; did you mean shard_bytes?"),
    ("workers", 0, "workers = 0: must be greater than or equal to 1"),
    ("engine", "rai", "engine = rai: must be pool or ray; did you mean ray?"),
    ("sources", {}, "sources = {}: Dictionary must have at least 1 item"),
    ("sources.a/b", TREE["sources"]["web"], "sources.a/b: a name is made of letters, digits, dots"),
    ("sources.web.kidn", "x", "sources.web.kidn = x: unknown key; did you mean sources.web.kind?"),
    ("sources.web.kind", "jsnl", "sources.web.kind = jsnl: must be jsonl, parquet, .*; did you mean jsonl?"),
    ("sources.web.paths", "a", "sources.web.paths = a: must be a valid list"),
    ("sources.web.paths", [], r"sources.web.paths = \[\]: Tuple must have at least 1 item"),
    (
        "sources.web.fields",
        {"txt": "t"},
        "sources.web.fields.txt = t: unknown key; did you mean sources.web.fields.text?",
    ),
    ("sources.web.rules", "wep", "sources.web.rules = wep: no such set; did you mean web?"),
    ("sources.web.options", {"fineweb": {}}, "sources.web.options.fineweb: rules.web has no such rule"),
    ("sources.web.options", {"gopher_quality": {"min_wrds": 2}}, r"gopher_quality.min_wrds = 2: .*mean min_words"),
    ("sources.bare.options", {"c4": {}}, "sources.bare.options: there is no sources.bare.rules whose options"),
    ("rules.web.gopher_qualty", {}, "rules.web.gopher_qualty: no such rule; did you mean gopher_quality?"),
    ("rules.web.gopher_quality.min_wrds", 3, r"rules.web.gopher_quality.min_wrds = 3: unknown option; .*min_words"),
    ("rules.web.gopher_quality.min_words", "few", "rules.web.gopher_quality.min_words = few: must be a valid integer"),
    ("rules.web.gopher_quality.stop_words", 3, "rules.web.gopher_quality.stop_words = 3: must be a valid list"),
    ("dedup.fuzy", None, "dedup.fuzy = null: unknown key; did you mean dedup.fuzzy?"),
    ("dedup.fuzzy.keep", "longst", "dedup.fuzzy.keep = longst: must be first or longest; did you mean longest?"),
    ("dedup.lines.minimum_count", 1, "dedup.lines.minimum_count = 1: must be greater than or equal to 2"),
    ("split.valid_fraction", 1.0, "split.valid_fraction = 1.0: must be less than 1"),
]


@pytest.mark.parametrize(("path", "value", "message"), COMPLAINTS)
def test_a_complaint_is_one_line_with_the_key_its_value_and_what_would_be_right(path, value, message):
    with pytest.raises(UsageError, match=message.removesuffix("?")) as caught:
        check_tree(changed(path, value), CurationConfig)
    assert "\n" not in str(caught.value)


def test_what_is_dumped_loads_as_the_same(tmp_path):
    config = check_tree(TREE, CurationConfig)
    (tmp_path / "c.yaml").write_text(dump(config))
    assert load_curation(tmp_path / "c.yaml") == config
    changed = load_curation(tmp_path / "c.yaml", ["sources.web.paths=[x]", "dedup.fuzzy=null", "workers=3"])
    assert changed.sources["web"].paths == ("x",) and changed.dedup.fuzzy is None and changed.workers == 3


@pytest.mark.parametrize("name", ["quickstart", "web"])
def test_the_ready_configurations_are_right(name):
    load_curation(f"examples/curation/{name}.yaml")
