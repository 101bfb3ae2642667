"""What most people ship: plain ONNX Runtime on the logits, pre- and post-processing in NumPy and Pillow.

    python benchmarks/peers/onnxruntime_numpy.py GRAPH.onnx HEIGHT WIDTH IMAGE...

GRAPH takes float32 (N, 3, H, W), normalised, and gives logits (N, K, H, W). For every line on stdin the images go once
from file to encoded mask, as one batch, and the milliseconds stand on stdout.
"""

import io
import sys
import time

import numpy as np
import onnxruntime
from PIL import Image

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def image_to_mask(session: onnxruntime.InferenceSession, files: list[str], height: int, width: int) -> list[bytes]:
    photos = [Image.open(file).convert("RGB") for file in files]
    resized = np.stack([np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR)) for photo in photos])
    batch = ((resized.astype(np.float32) / 255 - MEAN) / STD).transpose(0, 3, 1, 2)
    (logits,) = session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(batch)})
    class_maps = logits.argmax(axis=1).astype(np.uint8)
    return [
        encoded(Image.fromarray(class_map).resize(photo.size, Image.Resampling.NEAREST))
        for photo, class_map in zip(photos, class_maps, strict=True)
    ]


def encoded(mask: Image.Image) -> bytes:
    file = io.BytesIO()
    mask.save(file, "PNG")
    return file.getvalue()


def main() -> None:
    graph, height, width, *files = sys.argv[1:]
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    for _ in sys.stdin:
        started = time.perf_counter_ns()
        image_to_mask(session, files, int(height), int(width))
        print((time.perf_counter_ns() - started) / 1e6, flush=True)


if __name__ == "__main__":
    main()
