"""weights: one layer of a network, a matrix of 1200 x 1000 weights times a vector (numpy)."""

import os
import sys

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "runtime"))
import medes_runtime

ROWS, COLUMNS = 1200, 1000


def init(seed):
    # Whole numbers: their sums are exact, in whatever order they are added.
    return np.random.default_rng(seed).integers(-100, 100, (ROWS, COLUMNS)).astype(np.float32)


def handle(weights, n):
    inputs = np.full(COLUMNS, n % 10, dtype=np.float32)
    outputs = weights @ inputs
    return {"sum": int(outputs.sum(dtype=np.float64)), "largest": int(outputs.max())}


medes_runtime.serve("weights", init, handle)
