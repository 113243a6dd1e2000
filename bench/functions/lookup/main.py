"""lookup: two hundred entries of a table of hashes, as JSON (standard library)."""

# What a small service imports, whether or not a request needs it.
import base64
import datetime
import email
import json
import logging
import os
import random
import sqlite3
import sys
import uuid
import zlib

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "runtime"))
import medes_runtime

ENTRIES = 20_000
WANTED = 200


def init(seed):
    return {str(key): medes_runtime.digest(f"{seed} {key}") for key in range(ENTRIES)}


def handle(table, n):
    first = n % (ENTRIES - WANTED)
    text = json.dumps({str(key): table[str(key)] for key in range(first, first + WANTED)})
    return {"bytes": len(text), "digest": medes_runtime.digest(text)}


medes_runtime.serve("lookup", init, handle)
