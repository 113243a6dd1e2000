"""auth: encrypts and decrypts a message with AES-128 in counter mode, in pure Python (pyaes)."""

import os
import random
import sys

import pyaes

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "runtime"))
import medes_runtime

MESSAGE_BYTES = 8_000
ROUNDS = 2


def init(seed):
    rng = random.Random(seed)
    # Measures AES, protects nothing: a key for secrets would not come from `random`.
    return rng.randbytes(16), rng.randbytes(MESSAGE_BYTES)


def handle(state, n):
    key, message = state
    hashes = []
    for turn in range(ROUNDS):
        start = n * ROUNDS + turn + 1
        secret = pyaes.AESModeOfOperationCTR(key, counter=pyaes.Counter(start)).encrypt(message)
        plain = pyaes.AESModeOfOperationCTR(key, counter=pyaes.Counter(start)).decrypt(secret)
        if plain != message:
            raise RuntimeError("decryption did not give the message back")
        hashes.append(medes_runtime.digest(secret))
    return {"bytes": len(message), "digest": medes_runtime.digest(*hashes)}


medes_runtime.serve("auth", init, handle)
