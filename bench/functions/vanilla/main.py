"""vanilla: floating point in a plain loop. The interpreter and nothing else: the smallest sandbox there is."""

import math
import os
import random
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "runtime"))
import medes_runtime

TERMS = 200_000


def init(seed):
    return random.Random(seed).uniform(1.0, 1000.0)


def handle(offset, n):
    first = offset + n % 1000
    total = 0.0
    for i in range(TERMS):
        x = first + i
        total += math.sin(x) * math.cos(x) / math.sqrt(x)
    return round(total, 9)


medes_runtime.serve("vanilla", init, handle)
