"""model-train: learns to tell a review's score from its text: TF-IDF and logistic regression, model saved."""

import os
import re
import sys
import tempfile
import warnings

import joblib
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "runtime"))
import medes_runtime
from reviews import reviews

REVIEWS = 2_500
NOT_LETTERS = re.compile("[^a-z]+")

# The number of steps is fixed on purpose: a benchmark wants the same work in every request.
warnings.filterwarnings("ignore", category=ConvergenceWarning)


def init(seed):
    return reviews(seed, REVIEWS)


def handle(table, n):
    # Trains on four fifths and tests on the rest; n chooses the rest.
    held_out = (table.index + n) % 5 == 0
    texts = table["Text"].str.lower().apply(lambda text: NOT_LETTERS.sub(" ", text))
    vectorizer = TfidfVectorizer(min_df=20).fit(texts[~held_out])
    model = LogisticRegression(max_iter=30).fit(vectorizer.transform(texts[~held_out]), table["Score"][~held_out])
    right = model.score(vectorizer.transform(texts[held_out]), table["Score"][held_out])
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.joblib")
        joblib.dump(model, path)
        saved = os.path.getsize(path)
    return {
        "words": len(vectorizer.vocabulary_),
        "right": round(float(right), 6),
        # Four digits: what comes after them is the order of additions, not the model.
        "weights": round(float(abs(model.coef_).sum()), 4),
        "saved": saved > 0,
    }


medes_runtime.serve("model-train", init, handle)
