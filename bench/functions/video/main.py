"""video: decodes a short clip with OpenCV, makes every frame grey by way of a JPEG file, encodes it again."""

import os
import sys
import tempfile

import cv2
import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "runtime"))
import medes_runtime

WIDTH, HEIGHT = 320, 240
FRAMES = 30
CODEC = cv2.VideoWriter_fourcc(*"MJPG")

# One core per sandbox, as the [env] of the function file says for the other libraries.
cv2.setNumThreads(1)


def init(seed):
    """The clip as the bytes of an AVI file: a drifting texture with a ball that crosses it."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    start, colour = int(rng.integers(0, WIDTH)), rng.integers(0, 256, 3).tolist()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "clip.avi")
        writer = cv2.VideoWriter(path, CODEC, 25.0, (WIDTH, HEIGHT))
        for i in range(FRAMES):
            frame = cv2.resize(np.roll(texture, i, axis=1), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
            cv2.circle(frame, ((start + 10 * i) % WIDTH, HEIGHT // 2), 25, colour, -1)
            writer.write(frame)
        writer.release()
        with open(path, "rb") as file:
            return file.read()


def handle(clip, n):
    total = []
    with tempfile.TemporaryDirectory() as folder:
        source, still, result = (os.path.join(folder, name) for name in ("in.avi", "still.jpg", "out.avi"))
        with open(source, "wb") as file:
            file.write(clip)
        reader = cv2.VideoCapture(source)
        writer = cv2.VideoWriter(result, CODEC, 20.0, (WIDTH, HEIGHT))
        while True:
            more, frame = reader.read()
            if not more:
                break
            grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
            cv2.imwrite(still, grey, [cv2.IMWRITE_JPEG_QUALITY, 80 + n % 15])
            frame = cv2.imread(still)
            total.append(medes_runtime.digest(frame))
            writer.write(frame)
        reader.release()
        writer.release()
        encoded = os.path.getsize(result)
    return {"frames": len(total), "encoded": encoded > 0, "digest": medes_runtime.digest(*total)}


medes_runtime.serve("video", init, handle)
