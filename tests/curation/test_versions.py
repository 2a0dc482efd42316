"""Results of curation are keyed by the versions of what made them: a release redoes nothing that no change concerns."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
from support import curation_versions
from support.curation_versions import notes, stored, without_words, working_classes

from megatron_lite.curation.engine.identity import fingerprint
from megatron_lite.curation.rules.c4 import C4
from megatron_lite.curation.stages.filter import SourceRules


def test_no_code_of_a_rule_or_stage_changed_without_a_decision_on_its_version():
    now, before = notes(), stored()
    changed = sorted(name for name in {*now, *before} if now.get(name) != before.get(name))
    assert not changed, (
        f"{', '.join(changed)}: other code than in tests/curation/versions.json. Where any result may differ raise the "
        "class' version; then, in tests/, `python -m support.curation_versions` notes it"
    )


@pytest.mark.parametrize("name", working_classes())
def test_everything_that_makes_results_has_a_version_of_its_own(name):
    assert vars(working_classes()[name])["version"] >= 1


def test_another_version_of_a_rule_is_another_fingerprint_of_all_that_holds_it(monkeypatch):
    before = fingerprint(SourceRules.of((C4(),)))
    monkeypatch.setattr(C4, "version", C4.version + 1)
    assert fingerprint(SourceRules.of((C4(),))) != before


def test_a_release_alone_changes_no_fingerprint(monkeypatch):
    before = fingerprint(SourceRules.of((C4(),)))
    monkeypatch.setattr("megatron_lite.__version__", "9.9.9")
    assert fingerprint(SourceRules.of((C4(),))) == before


def test_what_makes_results_without_a_version_has_no_fingerprint():
    @dataclass(frozen=True)
    class Forgotten:
        threshold: float = 0.5

        def __call__(self, document):
            return None

    @dataclass(frozen=True)
    class Inherits(C4):
        more: ClassVar[int] = 1

    with pytest.raises(TypeError, match=r"Forgotten makes results and has no version"):
        fingerprint(Forgotten())
    with pytest.raises(TypeError, match=r"Inherits makes results and has no version"):
        fingerprint(Inherits())


def test_comments_and_docstrings_are_no_code():
    source = '''"""Words."""

def f(x):  # why
    """More words,
    two lines."""
    # a comment
    return "#" + x
'''
    assert "".join(without_words(source).split()) == 'deff(x):return"#"+x'
    assert without_words(source.replace("two", "three")) == without_words(source)
    assert without_words(source.replace('"#"', '"!"')) != without_words(source)


def test_what_looks_like_a_comment_inside_quotes_is_code():
    source = 'f("http://x", \'"\', "/* \\" */"); // why\n/* two\nlines */ g(1\'000);\n'
    assert curation_versions.without_comments(source) == 'f("http://x", \'"\', "/* \\" */"); \n g(1\'000);\n'


def test_code_is_followed_through_imports_into_c_and_lists():
    def names(module: str) -> set[str]:
        return {path.name for path in curation_versions.files_of(f"megatron_lite.curation.{module}")}

    assert {"c4.py", "rule.py", "documents.py", "text.cpp", "c4.h", "sentences.py"} <= names("rules.c4")
    assert "offensive_en.tsv" in names("rules.toxicity")
    assert {"fuzzy.py", "dedup.cpp", "judging.py"} <= names("stages.deduplicate")
