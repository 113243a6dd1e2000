"""mapreduce: counts in how many articles each of fifteen programming languages is named, with four mappers."""

import itertools
import os
import random
import string
import sys

# Threads with the interface of multiprocessing, as FunctionBench has it: sandboxes of this kind often have no
# semaphores to share between processes. Python lets one thread run at a time, so this measures
# a sandbox with threads, not a parallel speed-up.
from multiprocessing.dummy import Pool

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "runtime"))
import medes_runtime

LANGUAGES = (
    "JavaScript Java PHP Python C# C++ Ruby CSS Objective-C Perl Scala Haskell MATLAB Clojure Groovy".split()
)
MAPPERS = 4
WORDS = 10_000
ARTICLES = 1_000
ARTICLE_WORDS = 300


def init(seed):
    """About 2 MB of articles. Words follow Zipf's law, as in any language."""
    rng = random.Random(seed)
    words = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 10))) for _ in range(WORDS)]
    weights = list(itertools.accumulate(1 / rank for rank in range(1, WORDS + 1)))
    articles = []
    for _ in range(ARTICLES):
        text = rng.choices(words, cum_weights=weights, k=ARTICLE_WORDS)
        if rng.random() < 0.3:
            text[rng.randrange(ARTICLE_WORDS)] = rng.choice(LANGUAGES)
        articles.append(f"<title>{text[0]}</title><text>{' '.join(text)}</text>")
    return articles


def count(articles):
    """One mapper."""
    found = dict.fromkeys(LANGUAGES, 0)
    for article in articles:
        words = set(article[article.index("<text>") + 6 : -len("</text>")].split(" "))
        for language in LANGUAGES:
            if language in words:
                found[language] += 1
    return found


def handle(articles, n):
    # Nine tenths of the articles, from a place that n chooses.
    start = n % len(articles)
    chosen = (articles[start:] + articles[:start])[: len(articles) * 9 // 10]
    with Pool(MAPPERS) as pool:
        parts = pool.map(count, [chosen[i::MAPPERS] for i in range(MAPPERS)])
    return {language: sum(part[language] for part in parts) for language in LANGUAGES}


medes_runtime.serve("mapreduce", init, handle)
