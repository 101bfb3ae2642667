"""The loop that people write around a network: Pillow reads, resizes and writes, NumPy or the framework does the rest.

Files are read and masks written as segdeploy does it: a thread for each core, PNG with the same compression.

A peer hands over `run`: uint8 RGB (N, H, W, 3) in, uint8 class maps (N, H, W) out. For every line on stdin the images
go once from file to encoded mask, as one batch; stdout has the milliseconds of `run` and of the whole. A line that
ends in .npy asks for the class maps in that file besides.
"""

import contextlib
import io
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
PALETTE = bytes(value for grey in range(256) for value in (grey, grey, grey))
Run = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


def serve(run: Run, height: int, width: int, files: Sequence[str]) -> None:
    for line in sys.stdin:
        total, of_run, class_maps = drawn(run, (width, height), files)
        if line.strip().endswith(".npy"):
            np.save(Path(line.strip()), class_maps)
        print(of_run, total, flush=True)


def drawn(run: Run, size: tuple[int, int], files: Sequence[str]) -> tuple[float, float, NDArray[np.uint8]]:
    """Milliseconds of the whole and of `run`, and the class maps; `size`: width and height of the network."""

    def read(file: str) -> tuple[tuple[int, int], NDArray[np.uint8]]:
        photo = Image.open(file).convert("RGB")
        return photo.size, np.asarray(photo.resize(size, Image.Resampling.BILINEAR))

    started = time.perf_counter_ns()
    with threads(len(files)) as each:
        sizes, pictures = zip(*each(read, files), strict=True)
        batch = np.stack(pictures)
        before = time.perf_counter_ns()
        class_maps = run(batch)
        after = time.perf_counter_ns()
        list(each(encoded, class_maps, sizes))
    return (time.perf_counter_ns() - started) / 1e6, (after - before) / 1e6, class_maps


@contextlib.contextmanager
def threads(files: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """A `map` that works on several files at once."""
    if files == 1:
        yield map
        return
    with ThreadPoolExecutor(cores()) as pool:
        yield pool.map


def cores() -> int:
    """Those that this process may use: the threads of every competitor."""
    return len(os.sched_getaffinity(0))


def encoded(class_map: NDArray[np.uint8], size: tuple[int, int]) -> bytes:
    """At the photograph's size, with a palette and the quickest compression that Pillow has for class maps: by runs."""
    file = io.BytesIO()
    mask = Image.fromarray(class_map).resize(size, Image.Resampling.NEAREST)
    mask.putpalette(PALETTE)
    mask.save(file, "PNG", compress_type=zlib.Z_RLE)
    return file.getvalue()


def normalised(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, H, W, 3) -> (N, 3, H, W), as NumPy is written."""
    return np.ascontiguousarray(((batch.astype(np.float32) / 255 - MEAN) / STD).transpose(0, 3, 1, 2))


def class_maps_of(logits: NDArray[np.float32]) -> NDArray[np.uint8]:
    class_maps: NDArray[np.uint8] = logits.argmax(axis=1).astype(np.uint8)
    return class_maps
