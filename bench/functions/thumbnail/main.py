"""thumbnail: a photograph, decoded, made small and soft, and saved (Pillow)."""

import io
import os
import sys

import numpy as np
from PIL import Image, ImageFilter

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "runtime"))
import medes_runtime

WIDTH, HEIGHT = 640, 480
SMALL = (160, 120)


def init(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def handle(photo, n):
    with Image.open(io.BytesIO(photo)) as image:
        small = image.resize(SMALL).filter(ImageFilter.BLUR)
    file = io.BytesIO()
    # The compression depends on n, so that two requests still differ.
    small.save(file, "PNG", compress_level=4 + n % 3)
    return {"bytes": len(file.getvalue()), "digest": medes_runtime.digest(file.getvalue())}


medes_runtime.serve("thumbnail", init, handle)
