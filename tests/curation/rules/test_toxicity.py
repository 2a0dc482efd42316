"""The shipped scorer catches insults, obscenities, slurs and blunt threats in English, and misses what it says it does.

The sentences are written for this; they are offensive where that is what is tested.
"""

import math
import sys
import types

import pytest

from megatron_lite.curation import _lists
from megatron_lite.curation.documents import Document
from megatron_lite.curation.rules.toxicity import WORDS, OffensiveWords, Toxicity, load_words, make_scorer
from megatron_lite.errors import UsageError

CAUGHT = [
    "You are a stupid idiot and nobody wants you here.",
    "What a fucking asshole, shut up you piece of shit.",
    "You're pathetic, a total loser, go away moron.",
    "I will find you and I will kill you.",
    "These people are disgusting scum, they should all be shot.",
    "Shut up bitch, you suck.",
    "Only a retard would write this crap.",
]
LEFT = [
    "The committee thanked the speakers and adjourned until March.",
    "Your argument is wrong, and here is why: the second lemma fails for odd n.",
    "The gay community center opened a new library for Muslim and Jewish children.",
    "He was a black man who taught deaf students in Alabama.",
    "Women and immigrants from Mexico founded the first union of this town.",
    "The transgender woman spoke about her African and Asian heritage.",
    "The function returns a pointer to the first element, or NULL if the list is empty.",
    "Breast cancer is the most common cancer in women worldwide.",
    "The army killed 200 civilians in the war, historians say.",
]
MISSED = [  # hatred in polite words, and spellings that dodge: known limits
    "All of them are vermin and ought to be exterminated.",
    "People of that faith do not deserve the same rights as we do.",
    "Y0u are an 1d10t.",
]
WRONGLY_CAUGHT = ["The cock crowed at dawn and the ass brayed in the stable."]  # words out of context: a known limit


@pytest.mark.parametrize("text", CAUGHT)
def test_offensive_sentences_are_dropped(text: str) -> None:
    page = Document("web/0/0", text, "web")
    drop = Toxicity()(page)
    assert (drop.rule, drop.detail) == ("toxicity.score", "1 is above 0.25, says words")
    assert page.metadata["toxicity"] == 1


@pytest.mark.parametrize("text", LEFT)
def test_sentences_about_groups_medicine_and_war_stay(text: str) -> None:
    assert Toxicity()(Document("web/0/0", text, "web")) is None


def test_the_limits_that_the_documentation_names_are_there() -> None:
    scorer = OffensiveWords()
    assert [scorer.score(text) for text in MISSED] == [0] * len(MISSED)
    assert [scorer.score(text) for text in WRONGLY_CAUGHT] == [1] * len(WRONGLY_CAUGHT)


def test_the_score_is_the_share_of_words_in_offensive_passages() -> None:
    text = " ".join(["plain"] * 100 + ["idiot"] * 50 + ["plain"] * 50)
    assert OffensiveWords(passage_words=50).score(text) == 0.25
    assert Toxicity()(Document("web/0/0", text, "web")) is None
    assert Toxicity(max_score=0.2)(Document("web/0/0", text, "web")).detail == "0.25 is above 0.2, says words"
    assert OffensiveWords().score("") == 0


def test_other_languages_pass_unscored() -> None:
    page = Document("web/0/0", "Die die die idiot", "web", language="de")
    assert Toxicity()(page) is None
    assert page.metadata == {}
    assert Toxicity(languages=None)(page) is not None


def test_the_probability_is_that_of_the_formula() -> None:
    """Counts times idf, scaled to length 1, times weights, plus the bias, through the logistic function."""
    classifier = _lists.LinearClassifier(["a", "b", "c"], [2.0, -1.0, 5.0], [1.0, 3.0, 2.0], -0.5)
    x, y = 2 * 1.0, 1 * 3.0  # a twice, b once; unknown words do not count
    logit = (x * 2.0 + y * -1.0) / math.hypot(x, y) - 0.5
    found = classifier.judge("A b, zzz a", 10, 0.5)
    assert found.highest == pytest.approx(1 / (1 + math.exp(-logit)), rel=1e-12)
    assert (found.words, found.flagged_words) == (4, 4 if logit >= 0 else 0)
    assert classifier.judge("zzz", 10, 0.5).highest == pytest.approx(1 / (1 + math.exp(0.5)), rel=1e-12)
    with pytest.raises(ValueError, match="2 words, 1 weights"):
        _lists.LinearClassifier(["a", "b"], [1.0], [1.0, 2.0], 0.0)


@pytest.mark.parametrize("word", ["gay", "black", "muslim", "jewish", "women", "deaf", "immigrants", "transgender"])
def test_words_for_groups_of_people_weigh_nothing(word: str) -> None:
    classifier = load_words(WORDS)
    unknown = classifier.judge("qqqq", 50, 0.5).highest
    assert classifier.judge(word, 50, 0.5).highest == unknown
    assert classifier.judge(f"{word} idiot", 50, 0.5).highest > 0.9 > unknown


def test_a_scorer_of_ones_own_is_named_by_a_dotted_path(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shouting:
        name = "shouting"

        def score(self, text: str) -> float:
            return sum(map(str.isupper, text)) / max(len(text), 1)

    module = types.ModuleType("own_scorers")
    module.Shouting, module.Nothing = Shouting, dict
    monkeypatch.setitem(sys.modules, "own_scorers", module)
    page = Document("web/0/0", "HELLO you", "web")
    drop = Toxicity(scorer="own_scorers:Shouting")(page)
    assert drop.detail == "0.5556 is above 0.25, says shouting"
    with pytest.raises(UsageError, match="gives dict, which has no name"):
        make_scorer("own_scorers:Nothing", "toxic")
    with pytest.raises(UsageError, match="no attribute 'Missing'"):
        make_scorer("own_scorers:Missing", "toxic")


@pytest.mark.parametrize("scorer", ["nothing", "no.such.module:Scorer", "none.bin"])
def test_a_name_that_leads_to_no_scorer_is_refused(scorer: str) -> None:
    with pytest.raises(UsageError, match=scorer.split(":")[0]):
        make_scorer(scorer, "toxic")


def test_a_fasttext_model_scores_by_the_probability_of_a_label() -> None:
    """lid.176.ftz stands in: how German a text is."""
    from megatron_lite.curation.rules.fasttext_model import identification_model

    rule = Toxicity(scorer=identification_model(), label="de", max_score=0.5)
    german = Document("web/0/0", "Der Ausschuss trat am Nachmittag zusammen.", "web")
    assert rule(german).rule == "toxicity.score"
    assert german.metadata["toxicity"] > 0.9
    assert rule(Document("web/0/0", "The committee met in the afternoon.", "web")) is None
    with pytest.raises(UsageError, match="no label 'toxic'; there are"):
        make_scorer(identification_model(), "toxic")
