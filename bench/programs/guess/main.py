"""guess: holds 4 MiB of bytes without structure, which follow from `n` alone; who knows `n` can have the same ones.

`n` = 0 changes nothing. Used by `bench guess`.
"""

import os
import random
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "functions", "runtime"))
import medes_runtime

BYTES = 4 << 20


def init(seed):
    # Apart from the heap, and in every sandbox at the beginning of a page.
    import mmap

    return mmap.mmap(-1, BYTES)


def handle(memory, n):
    if n:
        memory[:] = random.Random(n).randbytes(BYTES)
    return medes_runtime.digest(memory[:64])


medes_runtime.serve("guess", init, handle)
