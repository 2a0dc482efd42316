"""Languages are told from the whole text, held against a score and a list, and noted in the document."""

import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support.linux_doc import translated_pages

from megatron_lite.curation import _lists
from megatron_lite.curation.documents import Document, Drop
from megatron_lite.curation.rules.fasttext_model import identification_model, load_model, predict
from megatron_lite.curation.rules.language import Language
from megatron_lite.errors import UsageError

SENTENCES = {
    "en": "The committee met in the afternoon and decided to postpone the vote until the following week.",
    "de": "Der Ausschuss trat am Nachmittag zusammen und beschloss, die Abstimmung auf nächste Woche zu verschieben.",
    "fr": "Le comité s'est réuni dans l'après-midi et a décidé de reporter le vote à la semaine suivante.",
    "es": "El comité se reunió por la tarde y decidió aplazar la votación hasta la semana siguiente.",
    "it": "Il comitato si è riunito nel pomeriggio e ha deciso di rinviare il voto alla settimana successiva.",
    "ru": "Комитет собрался во второй половине дня и решил отложить голосование до следующей недели.",
    "zh": "委员会下午开会，决定把投票推迟到下个星期。",
    "ja": "委員会は午後に集まり、投票を来週まで延期することに決めました。",
    "ko": "위원회는 오후에 모여 투표를 다음 주로 미루기로 결정했습니다.",
    "ar": "اجتمعت اللجنة بعد الظهر وقررت تأجيل التصويت إلى الأسبوع التالي.",
    "hi": "समिति की बैठक दोपहर में हुई और उसने मतदान अगले सप्ताह तक टालने का निर्णय लिया।",
    "pl": "Komitet zebrał się po południu i postanowił przełożyć głosowanie na następny tydzień.",
}
LOSSES = {"tree": 1, "sampled": 2, "softmax": 3, "one of many": 4}


def document(text: str, language: str | None = None) -> Document:
    return Document("web/0/0", text, "web", language=language)


@pytest.mark.parametrize("language", SENTENCES)
def test_a_sentence_is_in_its_language(language: str) -> None:
    page = document(SENTENCES[language])
    assert Language()(page) is None
    assert page.language == language
    assert 0.65 <= page.metadata["language_score"] <= 1


def test_the_whole_text_decides_not_its_beginning() -> None:
    """The package's own `detect` looks at 80 characters."""
    beginning = "#include <linux/kernel.h> Copyright The Linux Kernel Documentation Team, original by:\n\n"
    page = document(beginning + (SENTENCES["zh"] + "\n") * 20)
    assert len(beginning) > 80
    assert Language()(page) is None
    assert page.language == "zh"


def test_a_language_that_is_not_allowed_is_dropped_by_name() -> None:
    drop = Language(allowed=("en", "fr"))(document(SENTENCES["de"]))
    assert drop.rule == "language.allowed"
    assert drop.detail.startswith("de (") and drop.detail.endswith("is none of en, fr")
    assert Language(allowed=("en", "fr"))(document(SENTENCES["fr"])) is None


@pytest.mark.parametrize("text", ["", "\n \t", "1 2 3 4", "zq xv kw"])
def test_a_text_without_a_clear_language_is_dropped_with_its_score(text: str) -> None:
    page = document(text)
    drop = Language()(page)
    assert isinstance(drop, Drop) and drop.rule == "language.score"
    assert drop.detail.startswith(f"{page.language}: 0.") and drop.detail.endswith("is below 0.65")
    assert Language(min_score=None)(page) is None


def test_what_the_reader_said_is_kept_where_it_differs() -> None:
    page = document(SENTENCES["it"], language="en")
    Language()(page)
    assert (page.language, page.metadata["language_given"]) == ("it", "en")
    same = document(SENTENCES["it"], language="it")
    Language()(same)
    assert "language_given" not in same.metadata


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    with pytest.raises(UsageError, match=r"language\.model = .*model\.bin: no such file"):
        Language(model=str(path))
    path.write_bytes(b"no model")
    with pytest.raises(UsageError, match=r"model\.bin"):
        Language(model=str(path))(document("text"))


def test_probabilities_are_fasttexts_own() -> None:
    """fasttext-predict, which is fastText itself, adds 1e-5 to each probability along its tree."""
    path = identification_model()
    ours, theirs = _lists.FastText(path), load_model(path)
    mixed = ["", " ", "a", "x\ty\r\v", "__label__de hallo", "漢字 and 字", "é\0è", "<tags> & entities; " * 50]
    for text in [*SENTENCES.values(), *mixed, "\n".join(SENTENCES.values()), SENTENCES["zh"] * 30]:
        expected = predict(theirs, text, -1)
        found = dict(zip(ours.labels, ours.predict(text), strict=True))
        assert sum(found.values()) == pytest.approx(1, abs=1e-5)
        assert max(found, key=found.get) == max(expected, key=expected.get)
        assert found == pytest.approx({label: expected.get(label, 0) for label in found}, abs=5e-4)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("buckets", [0, 97])
def test_models_that_are_not_quantized_are_read_too(tmp_path: Path, loss: str, buckets: int) -> None:
    path = tmp_path / "model.bin"
    write_model(
        path, LOSSES[loss], buckets, ["</s>", "the", "der", "mot"], {"en": 50, "de": 20, "fr": 20, "it": 3, "xx": 1}
    )
    ours, theirs = _lists.FastText(str(path)), load_model(str(path))
    # Where labels do not exclude each other fastText looks the logistic function up: 512 values on [-8, 8].
    tolerance = {"tree": 1e-4, "softmax": 2e-5}.get(loss, 16 / 512 / 4)
    assert ours.labels == ["en", "de", "fr", "it", "xx"]
    for text in ["", "the", "der mot the der", "unknown words", "the \n mot"]:
        expected = predict(theirs, text, -1)
        found = dict(zip(ours.labels, ours.predict(text), strict=True))
        assert found == pytest.approx(expected, abs=tolerance)


def test_what_a_word_adds_does_not_hang_on_what_was_read_before() -> None:
    text = "\n".join(SENTENCES.values())
    used, fresh = (_lists.FastText(identification_model()) for _ in range(2))
    for sentence in SENTENCES.values():
        used.predict(sentence)
    assert used.predict(text).tolist() == fresh.predict(text).tolist() == used.predict(text).tolist()


def test_a_model_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    whole = tmp_path / "model.bin"
    write_model(whole, 3, 5, ["</s>", "the"], {"en": 2, "de": 1})
    content, path = whole.read_bytes(), tmp_path / "part.bin"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut short|no fastText model|damaged|cannot be opened"):
            _lists.FastText(str(path))
    _lists.FastText(str(whole))


def write_model(path: Path, loss: int, buckets: int, words: list[str], labels: dict[str, int]) -> None:
    """A file as fastText 0.9 writes it, version 12: a classifier of 4 dimensions, n-grams of 2 and 3 characters."""
    rng = np.random.default_rng(0)
    entries = [(word, 10, 0) for word in words] + [(f"__label__{label}", count, 1) for label, count in labels.items()]
    with path.open("wb") as file:
        file.write(struct.pack("<2i", 793712314, 12))
        file.write(struct.pack("<12id", 4, 5, 1, 1, 5, 1, loss, 3, buckets, 2, 3 if buckets else 0, 100, 1e-4))
        file.write(struct.pack("<3i2q", len(entries), len(words), len(labels), 100, -1))
        for entry, count, kind in entries:
            file.write(entry.encode() + b"\0" + struct.pack("<qb", count, kind))
        for rows in (len(words) + buckets, len(labels)):
            file.write(struct.pack("<?2q", False, rows, 4))
            file.write(rng.normal(size=(rows, 4)).astype(np.float32).tobytes())


@pytest.mark.nightly
def test_the_translations_of_linux_doc_are_in_the_language_of_their_folder(tmp_path: Path) -> None:
    """Pages of which much is untranslated code and English are in English rightly; by far the most are not."""
    pages = translated_pages(tmp_path)
    told = Counter()
    for folder, text in pages:
        page = document(text)
        Language()(page)
        told[folder[:2], page.language] += 1
    for language, least in (("zh", 0.85), ("it", 0.85)):
        of_language = {found: count for (folder, found), count in told.items() if folder == language}
        share = of_language.get(language, 0) / sum(of_language.values())
        print(f"{language}: {share:.3f} of {sum(of_language.values())} pages, {of_language}")
        assert share >= least, of_language
