"""The loop that people write around a network: Pillow reads, resizes and writes, NumPy or the framework does the rest.

A peer hands over `run`: uint8 RGB (N, H, W, 3) in, uint8 class maps (N, H, W) out. For every line on stdin the images
go once from file to encoded mask, as one batch; stdout has the milliseconds of `run` and of the whole. A line that
ends in .npy asks for the class maps in that file besides.
"""

import io
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
Run = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


def serve(run: Run, height: int, width: int, files: Sequence[str]) -> None:
    for line in sys.stdin:
        started = time.perf_counter_ns()
        photos = [Image.open(file).convert("RGB") for file in files]
        batch = np.stack([np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR)) for photo in photos])
        before = time.perf_counter_ns()
        class_maps = run(batch)
        after = time.perf_counter_ns()
        if line.strip().endswith(".npy"):
            np.save(Path(line.strip()), class_maps)
        for class_map, photo in zip(class_maps, photos, strict=True):
            encoded(Image.fromarray(class_map).resize(photo.size, Image.Resampling.NEAREST))
        print((after - before) / 1e6, (time.perf_counter_ns() - started) / 1e6, flush=True)


def encoded(mask: Image.Image) -> bytes:
    file = io.BytesIO()
    mask.save(file, "PNG")
    return file.getvalue()


def normalised(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, H, W, 3) -> (N, 3, H, W), as NumPy is written."""
    return np.ascontiguousarray(((batch.astype(np.float32) / 255 - MEAN) / STD).transpose(0, 3, 1, 2))


def class_maps_of(logits: NDArray[np.float32]) -> NDArray[np.uint8]:
    class_maps: NDArray[np.uint8] = logits.argmax(axis=1).astype(np.uint8)
    return class_maps
