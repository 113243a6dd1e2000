"""feature: cleans review texts, collects their words and makes a TF-IDF vocabulary (pandas, scikit-learn)."""

import os
import re
import sys

from sklearn.feature_extraction.text import TfidfVectorizer

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "runtime"))
import medes_runtime
from reviews import reviews

REVIEWS = 3_500
NOT_LETTERS = re.compile("[^a-z]+")


def clean(text):
    return NOT_LETTERS.sub(" ", text.lower()).strip()


def init(seed):
    return reviews(seed, REVIEWS)


def handle(table, n):
    # Nine tenths of the reviews, from a place that n chooses.
    start = n % REVIEWS
    order = (range(start, REVIEWS), range(start))
    chosen = table.iloc[[i for part in order for i in part][: REVIEWS * 9 // 10]]
    texts = chosen["Text"].apply(clean)
    words = set()
    for text in texts:
        words.update(text.split())
    vectorizer = TfidfVectorizer(vocabulary=sorted(words), token_pattern=r"(?u)\b\w+\b").fit(texts)
    return {
        "words": len(vectorizer.get_feature_names_out()),
        "weight": round(float(vectorizer.idf_.sum()), 6),
        "digest": medes_runtime.digest(*vectorizer.get_feature_names_out()),
    }


medes_runtime.serve("feature", init, handle)
