"""Sentences: Punkt with the parameters shipped, and its training."""

import pickle
from pathlib import Path

import pytest

from megatron_lite.data.sentences import (
    ENGLISH,
    SentenceSplitter,
    prose_paragraphs,
    read_parameters,
    train_parameters,
    write_parameters,
)
from megatron_lite.errors import DataError

# Prose in which "Abk." is an abbreviation and everything else that ends in a period is not.
TRAINING = "\n\n".join(
    f"The Abk. number {i} was seen again by the people of the town. They saw that Abk. on a table. Nobody was there."
    for i in range(200)
)


@pytest.mark.parametrize(
    "sentences",
    [
        ["Dr. Smith met Mr. Jones at 5 p.m. on Monday.", "They spoke of J. Bach."],
        ["See fig. 3, e.g. the left half.", "The U.S. Congress voted.", "It passed."],
        ['"Really?"', "she asked.", "Python 3.11 is out!", "Well (as they say.)", "Next one"],
        ["One sentence without an end"],
        [],
    ],
)
def test_english_abbreviations_initials_and_numbers_end_no_sentence(sentences: list[str]) -> None:
    assert SentenceSplitter().split("  ".join(sentences)) == sentences


def test_spans_cut_the_text_at_white_space_alone() -> None:
    text = "One here.\n\nTwo there!\tThree (it is.) Four\n"
    spans = list(SentenceSplitter().spans(text))
    begins, ends = [begin for begin, _ in spans] + [len(text)], [0] + [end for _, end in spans]
    assert [text[begin:end] for begin, end in spans] == ["One here.", "Two there!", "Three (it is.)", "Four"]
    assert [text[end:begin] for end, begin in zip(ends, begins, strict=True)] == ["", "\n\n", "\t", " ", "\n"]


def test_count_stops_at_the_given_number() -> None:
    splitter = SentenceSplitter()
    assert splitter.count("One here. Two here. Three here.", at_most=5) == 3
    assert splitter.count("One here. Two here. Three here.", at_most=2) == 2
    assert splitter.count("", at_most=5) == 0


def test_a_splitter_goes_to_another_process_as_it_is() -> None:
    text = "Mr. Jones left. Dr. Smith stayed."
    assert pickle.loads(pickle.dumps(SentenceSplitter())).split(text) == ["Mr. Jones left.", "Dr. Smith stayed."]


def test_training_learns_an_abbreviation_from_text_alone(tmp_path: Path) -> None:
    write_parameters(train_parameters([TRAINING]), tmp_path / "p.json")
    splitter = SentenceSplitter(tmp_path / "p.json")
    assert splitter.split("Here is Abk. seven. Again.") == ["Here is Abk. seven.", "Again."]
    assert SentenceSplitter().split("Here is Abk. seven. Again.") == ["Here is Abk.", "seven.", "Again."]


def test_the_same_texts_train_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_parameters(train_parameters([TRAINING], ["mr"]), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    write_parameters(read_parameters(ENGLISH), tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == ENGLISH.read_bytes()


def test_training_reads_paragraphs_of_prose_alone() -> None:
    prose = "This paragraph has more than fifteen words in it, all of them plain, and ends with a period."
    code = "for (i = 0; i < n; i++) { this has more than fifteen words in it too, but braces }."
    assert list(prose_paragraphs(f"A Heading\n\n{prose}\n \n{code}\n\nToo short.\n\n{prose[:-1]}")) == [prose]


@pytest.mark.parametrize("content", ["", "[]", '{"abbreviations": 3}', "not JSON"])
def test_a_file_that_holds_no_parameters_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(DataError, match=r"p\.json: not a file of tools/train_sentences\.py"):
        SentenceSplitter(tmp_path / "p.json")
    with pytest.raises(DataError, match=r"q\.json: No such file"):
        SentenceSplitter(tmp_path / "q.json")
