"""image: turns, filters and shrinks a photograph with Pillow and saves each version as JPEG."""

import io
import os
import sys
import tempfile

import numpy as np
from PIL import Image, ImageFilter

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "runtime"))
import medes_runtime

WIDTH, HEIGHT = 1200, 800
PHOTOS = 3
TURNS = [
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_270,
]
FILTERS = [ImageFilter.BLUR, ImageFilter.CONTOUR, ImageFilter.SHARPEN]


def photo(rng):
    """A JPEG with soft shapes and some grain, about as hard to compress as a photograph."""
    coarse = Image.fromarray(rng.integers(0, 256, (HEIGHT // 40, WIDTH // 40, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = rng.integers(-12, 13, (HEIGHT, WIDTH, 1), dtype=np.int16)
    file = io.BytesIO()
    Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def init(seed):
    rng = np.random.default_rng(seed)
    return [photo(rng) for _ in range(PHOTOS)]


def handle(photos, n):
    with Image.open(io.BytesIO(photos[n % PHOTOS])) as image:
        image.load()
    versions = [image.transpose(turn) for turn in TURNS]
    versions += [image.filter(kernel) for kernel in FILTERS]
    versions.append(image.convert("L"))
    small = image.copy()
    small.thumbnail((128, 128))
    versions.append(small)

    hashes = []
    with tempfile.TemporaryDirectory() as folder:
        for i, version in enumerate(versions):
            path = os.path.join(folder, f"{i}.jpg")
            # The quality depends on n, so that two requests for the same photo still differ.
            version.save(path, quality=70 + n % 20)
            with open(path, "rb") as file:
                hashes.append(medes_runtime.digest(file.read()))
    return {"files": len(hashes), "digest": medes_runtime.digest(*hashes)}


medes_runtime.serve("image", init, handle)
