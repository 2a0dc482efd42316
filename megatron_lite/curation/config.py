"""The typed tree of a curation's CONFIG.yaml.

Everything that decides what is written stands here, `engine`, `workers` and `ray_address` aside: those only decide who
does the work.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from megatron_lite.config.complaints import show, suggest
from megatron_lite.config.load import apply_overrides, check_tree, read_tree
from megatron_lite.config.section import Positive, Section
from megatron_lite.curation.dedup import fuzzy, paragraphs, substring
from megatron_lite.curation.rules.rule import Rule
from megatron_lite.curation.rules.table import RULES
from megatron_lite.errors import UsageError

Strings = Annotated[tuple[str, ...], Field(strict=False)]
Options = Mapping[str, Any]  # of a rule; the rule's own fields say what there is
Content = Literal["prose", "code"]
Contents = Annotated[tuple[Content, ...], Field(strict=False)]


class FieldsConfig(Section):
    """Where a record of JSONL or Parquet holds what; `keep` names further fields to note in the document's metadata."""

    text: str = "text"
    url: str = "url"
    language: str = "language"
    keep: Strings = ()


DEFAULT_FIELDS = FieldsConfig()


@dataclass(frozen=True)
class Format:
    """What readers have to know of a source: what else changes in it leaves what they have read standing."""

    kind: str
    fields: FieldsConfig = DEFAULT_FIELDS
    html_skip: tuple[str, ...] = ()  # CSS selectors of elements that are no content


class SourceConfig(Section):
    """Files of one kind and origin.

    `paths` are files, folders or globs, local or at any fsspec URL; `exclude` are globs of names below a folder or a
    glob's fixed part. `required: false` lets a path be empty. `files` are documents one by one: text, code, and HTML
    by its ending. `rules` names a set of rules; `options` sets options of single rules of it for this source alone, and
    `RULE: null` leaves one out.
    """

    kind: Literal["jsonl", "parquet", "warc", "wet", "files"]
    paths: Annotated[Strings, Field(min_length=1)]
    exclude: Strings = ()
    required: bool = True
    content: Content = "prose"
    rules: str | None = None
    options: Mapping[str, Options | None] = {}
    fields: FieldsConfig = FieldsConfig()
    html_skip: Strings = ()

    @property
    def format(self) -> Format:
        return Format(self.kind, self.fields, self.html_skip)


class ReadingConfig(Section):
    """What is no document: a record above `max_record_bytes`, and bytes that are no UTF-8 unless they are replaced."""

    max_record_bytes: Positive = 32_000_000
    invalid_utf8: Literal["refuse", "replace"] = "refuse"


class FuzzyConfig(Section):
    """Near duplicates; `verify` is the Jaccard similarity that a pair must reach (null: a band in common is enough)."""

    keep: Literal["first", "longest"] = "first"
    verify: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0)] = 1
    content: Contents = ("prose", "code")

    def make(self) -> fuzzy.Fuzzy:
        return fuzzy.Fuzzy(self.keep, self.verify, self.seed)


class UnitsConfig(Section):
    """Paragraphs or lines of at least `minimum_words` that stand `minimum_count` times in the corpus or more."""

    minimum_count: Annotated[int, Field(ge=2)] = 2
    minimum_words: Positive = 3
    comparison: Literal["words", "exact"] = "words"
    content: Contents = ("prose",)

    def make(self, unit: Literal["paragraph", "line"]) -> paragraphs.Units:
        return paragraphs.Units(unit, self.minimum_count, self.minimum_words, self.comparison)


class LinesConfig(UnitsConfig):
    minimum_count: Annotated[int, Field(ge=2)] = paragraphs.LINES.minimum_count


class SubstringConfig(Section):
    """Passages of `window` words and more."""

    window: Annotated[int, Field(ge=2)] = substring.Substring.window
    content: Contents = ("prose",)

    def make(self) -> substring.Substring:
        return substring.Substring(self.window, min(substring.Substring.anchor, self.window))


class DedupConfig(Section):
    """Deduplication, in the order of these keys; null or false leaves a step out.

    Sources named first are preferred: what occurs again in a later one goes there. `previous` names earlier corpora,
    as folders, files or globs of shards; they come before all sources and stay as they are. `content` of a step are the
    kinds of sources it looks at. A step deals its hashes to ranges of about `range_bytes` of text, which bounds memory.
    """

    url: bool = True
    text: Literal["text", "words"] | None = "text"
    fuzzy: FuzzyConfig | None = FuzzyConfig()
    paragraphs: UnitsConfig | None = None
    lines: LinesConfig | None = None
    substring: SubstringConfig | None = None
    previous: Strings = ()
    range_bytes: Positive = 4_000_000_000


class SplitConfig(Section):
    """The part of the documents that is held out for validation, chosen by hashes of their ids."""

    valid_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.001
    seed: Annotated[int, Field(ge=0)] = 1234


class ReportConfig(Section):
    """What the report shows once it is there: tokens of binarized `datasets` (prefixes), a link to a `training` report.

    Running the same command again writes the report anew.
    """

    datasets: Strings = ()
    training: str | None = None


class CurationConfig(Section):
    """The whole tree; its keys are the YAML file's."""

    output: str
    engine: Literal["pool", "ray"] = "pool"
    workers: Positive = 1
    ray_address: str | None = None
    shard_bytes: Positive = 128_000_000
    sources: Annotated[Mapping[str, SourceConfig], Field(min_length=1)]
    reading: ReadingConfig = ReadingConfig()
    rules: Mapping[str, Mapping[str, Options | None]] = {}
    dedup: DedupConfig = DedupConfig()
    split: SplitConfig = SplitConfig()
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        for name in self.rules:
            make_rules(self.rules[name], f"rules.{name}")
        for name in self.sources:
            rules_of(self, name)
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise UsageError(f"sources.{name}: a name is made of letters, digits, dots, - and _, as a file's is")
        return self


def load_curation(path: str | Path, overrides: Sequence[str] = ()) -> CurationConfig:
    """The configuration of a YAML file with `section.key=value` overrides, later ones winning. Raises UsageError."""
    tree = read_tree(path, CurationConfig)
    apply_overrides(tree, overrides)
    return check_tree(tree, CurationConfig)


def rules_of(config: CurationConfig, source_name: str) -> tuple[Rule, ...]:
    """The rules of a source, in the order of their set. Raises UsageError."""
    source, where = config.sources[source_name], f"sources.{source_name}"
    if source.rules is None:
        if source.options:
            raise UsageError(f"{where}.options: there is no {where}.rules whose options they could be")
        return ()
    if source.rules not in config.rules:
        raise UsageError(f"{where}.rules = {source.rules}: no such set{suggest(source.rules, config.rules)}")
    chosen = {name: options or {} for name, options in config.rules[source.rules].items()}
    for name, options in source.options.items():
        if name not in chosen:
            raise UsageError(f"{where}.options.{name}: rules.{source.rules} has no such rule{suggest(name, chosen)}")
        if options is None:
            del chosen[name]
        else:
            chosen[name] = {**chosen[name], **options}
    return make_rules(chosen, where)


def make_rules(options_of: Mapping[str, Options | None], where: str) -> tuple[Rule, ...]:
    """The rules of these names with these options. Raises UsageError that names the key under `where`."""
    return tuple(_make_rule(name, options or {}, f"{where}.{name}") for name, options in options_of.items())


def _make_rule(name: str, options: Options, where: str) -> Rule:
    if name not in RULES:
        raise UsageError(f"{where}: no such rule{suggest(name, RULES)}; there are {', '.join(sorted(RULES))}")
    known = list(RULES[name].__dataclass_fields__)
    for key, value in options.items():
        if key not in known:
            raise UsageError(f"{where}.{key} = {show(value)}: unknown option{suggest(key, known)}")
    try:
        return TypeAdapter(RULES[name]).validate_python(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"][:1]))
        message = first["msg"].removeprefix("Input ").replace("should", "must").replace("tuple", "list")
        raise UsageError(f"{where}.{key} = {show(first['input'])}: {message}") from None
