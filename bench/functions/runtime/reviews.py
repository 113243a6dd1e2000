"""Made-up product reviews for `feature` and `model-train`.

They stand for the food reviews that FunctionBench downloads. Words follow Zipf's law and scores are as uneven
as real ones; a score shows in a few telling words, so that a model has something to learn. Real English has
more words that go together, so fitting times and vocabularies differ from those on real reviews.
"""

import numpy as np
import pandas as pd

WORDS = 8_000
TELLING_WORDS = 40
SCORES = [1, 2, 3, 4, 5]
SCORE_SHARES = [0.09, 0.05, 0.08, 0.14, 0.64]
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))
# What the cleaning step has to take out again.
ENDINGS = np.array([".", "!", "!!", "...", " <br />"])


def reviews(seed, count):
    """A table with the columns Score and Text: about 450 bytes of text in each row."""
    rng = np.random.default_rng(seed)
    words = np.array(["".join(rng.choice(LETTERS, rng.integers(2, 11))) for _ in range(WORDS)])
    # Telling words are neither the most frequent ones nor hapaxes.
    telling = words[200 : 200 + TELLING_WORDS * len(SCORES)].reshape(len(SCORES), TELLING_WORDS)
    shares = 1 / np.arange(1, WORDS + 1)
    shares /= shares.sum()
    scores = rng.choice(SCORES, count, p=SCORE_SHARES)
    texts = []
    for score in scores:
        text = rng.choice(words, rng.integers(20, 130), p=shares)
        text[:3] = rng.choice(telling[score - 1], 3)
        texts.append(" ".join(text).capitalize() + rng.choice(ENDINGS))
    return pd.DataFrame({"Score": scores, "Text": texts})
