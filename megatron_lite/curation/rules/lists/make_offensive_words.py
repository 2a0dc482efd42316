"""Write offensive_en.tsv: the words, weights and idf of the linear model in the package alt-profanity-check.

    pip install --target DIR alt-profanity-check
    PYTHONPATH=DIR python make_offensive_words.py

The package (MIT licence) holds scikit-learn's TfidfVectorizer and five LinearSVC, each with a logistic function over
its decision, trained on some 200,000 comments from Wikipedia and Twitter that people have labelled. Their logits are
averaged, which makes one linear model of them; scikit-learn is not needed to run it. Words that name groups of people
get no weight: in the training data they stand in insults so often that by themselves they would count as one.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

TARGET = Path(__file__).with_name("offensive_en.tsv")
GROUPS = frozenset(
    (
        "african africans american americans arab arabs asian asians bisexual black blacks blind brown catholic "
        "catholics chinese christian christians deaf disabled female females feminist feminists french gay gays german "
        "germans girl girls hindu hindus hispanic homosexual homosexuality homosexuals immigrant immigrants indian "
        "indians irish islam islamic israeli italian jew jewish jews latino latinos lesbian lesbians male males man "
        "men mexican mexicans mormon muslim muslims native old palestinian palestinians polish puerto queer race "
        "racial refugee refugees russian russians trans transgender transsexual turkish turks white whites woman women"
    ).split()
)


def main() -> None:
    import joblib  # executes what the package's files say: run this for a package that you trust

    package = find_spec("profanity_check")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("this takes the package alt-profanity-check")
    folder = Path(package.submodule_search_locations[0]) / "data"
    vectorizer, model = joblib.load(folder / "vectorizer.joblib"), joblib.load(folder / "model.joblib")
    parts = [(part.estimator, part.calibrators[0]) for part in model.calibrated_classifiers_]
    weights = np.mean([-sigmoid.a_ * machine.coef_[0] for machine, sigmoid in parts], axis=0)
    bias = np.mean([-sigmoid.a_ * machine.intercept_[0] - sigmoid.b_ for machine, sigmoid in parts])
    with TARGET.open("w", encoding="utf-8") as file:
        file.write(f"# bias\t{bias:.4f}\n")
        for word, i in sorted(vectorizer.vocabulary_.items()):
            weight = 0.0 if word in GROUPS else weights[i]
            file.write(f"{word}\t{weight:.2f}\t{vectorizer.idf_[i]:.2f}\n")


if __name__ == "__main__":
    main()
