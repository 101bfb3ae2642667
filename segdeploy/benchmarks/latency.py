"""Honest timing: warmed up, interleaved over the engines, whole distributions instead of a mean."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy import images
from segdeploy.engines import Engine

SCHEMA = 1
WARMUP = 3
RESAMPLES = 2000
Task = Callable[[], None]


def interleaved(tasks: Sequence[Task], *, runs: int, done: Callable[[], None]) -> list[list[float]]:
    """Milliseconds of each task in each run, A B A B ..., so that a busy moment of the machine meets all of them."""
    for task in tasks:
        for _ in range(WARMUP):
            task()
    samples: list[list[float]] = [[] for _ in tasks]
    for _ in range(runs):
        for task, kept in zip(tasks, samples, strict=True):
            started = time.perf_counter_ns()
            task()
            kept.append((time.perf_counter_ns() - started) / 1e6)
            done()
    return samples


def host(engine: Engine, batch: NDArray[np.uint8]) -> Task:
    """Class maps from images in memory, copies included."""
    return lambda: (engine.classify(batch), None)[1]


def image_to_mask(engine: Engine, files: Sequence[Path]) -> Task:
    """From image files to encoded masks, one after the other: read, resize, engine, resize back, encode."""

    def task() -> None:
        photos = [images.read(file) for file in files]
        class_maps = engine.classify(np.stack([images.prepared(photo, engine.spec) for photo in photos]))
        for photo, class_map in zip(photos, class_maps, strict=True):
            height, width, _ = photo.shape
            images.mask_png(images.to_photo_size(class_map, height=height, width=width), engine.spec.colours)

    return task


def ratio(ms: Sequence[float], reference_ms: Sequence[float]) -> dict[str, Any]:
    """The median of one task over that of another, with its 95 % bootstrap interval; runs are drawn in pairs."""
    pairs = np.array([ms, reference_ms])
    drawn = np.random.default_rng(0).integers(0, pairs.shape[1], (RESAMPLES, pairs.shape[1]))
    medians = np.median(pairs[:, drawn], axis=2)
    low, high = np.percentile(medians[0] / medians[1], [2.5, 97.5])
    return {"ratio": float(np.median(ms) / np.median(reference_ms)), "interval": [float(low), float(high)]}


def summary(samples_ms: Sequence[float], *, batch: int) -> dict[str, Any]:
    """Latency of one call over the batch, and images a second by its median."""
    p50, p90, p95, p99 = np.percentile(samples_ms, [50, 90, 95, 99])
    return {
        "images_per_s": 1000 * batch / float(p50),
        "latency_ms": {
            "min": float(np.min(samples_ms)),
            "mean": float(np.mean(samples_ms)),
            "median": float(p50),
            "p90": float(p90),
            "p95": float(p95),
            "p99": float(p99),
        },
    }
