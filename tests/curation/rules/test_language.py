"""Languages are told from the whole text, held against a score and a list, and noted in the document."""

from collections import Counter
from pathlib import Path

import pytest
from support.linux_doc import translated_pages

from megatron_lite.curation.documents import Document, Drop
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
