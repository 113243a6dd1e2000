"""guess: holds $GUESS_MIB (4) MiB of bytes without structure, which follow from `n` alone; who knows `n` can have the same ones.

`n` = 0 changes nothing. Every answer looks at every page. Used by `bench guess`.
"""

import os
import random
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "functions", "runtime"))
import medes_runtime

BYTES = int(os.environ.get("GUESS_MIB", "4")) << 20
# All at once would leave a second copy behind, in a heap that the allocator does not give back.
PART_BYTES = 1 << 16
PAGE_BYTES = 4096


def init(seed):
    # Apart from the heap, and in every sandbox at the beginning of a page. Private, as a program's own memory is.
    import mmap

    return mmap.mmap(-1, BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def handle(memory, n):
    if n:
        stream = random.Random(n)
        for start in range(0, BYTES, PART_BYTES):
            memory[start : start + PART_BYTES] = stream.randbytes(PART_BYTES)
    # A byte of each: an answer must not come before what it is about is back.
    return medes_runtime.digest(memory[::PAGE_BYTES])


medes_runtime.serve("guess", init, handle)
