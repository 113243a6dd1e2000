"""linalg: solves a dense linear system and multiplies two matrices with numpy."""

import os
import sys

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "runtime"))
import medes_runtime

SIZE = 500


def init(seed):
    return np.random.default_rng(seed).random((SIZE, SIZE)) - 0.5


def handle(matrix, n):
    # A strong diagonal keeps the system well conditioned: six digits of the answer never depend on rounding.
    shifted = matrix + np.eye(SIZE) * (SIZE + n % 1000)
    right = np.arange(SIZE, dtype=np.float64) + n % 1000
    solution = np.linalg.solve(shifted, right)
    product = shifted @ matrix
    return {
        "solution": round(float(solution.sum()), 6),
        "error": round(float(np.abs(shifted @ solution - right).max()), 6),
        "trace": round(float(np.trace(product)), 6),
    }


medes_runtime.serve("linalg", init, handle)
