"""Result files of `bench --save` as the report meets them: small, complete, and true in shape."""

import base64
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from conftest import photograph
from numpy.typing import NDArray
from PIL import Image

from segdeploy import images
from segdeploy.timing.contest import IN_ROWS

COLOURS = ((0, 0, 0), (255, 196, 0), (0, 128, 192))
CLASSES = ("ground", "nucleus", "rim")
HEIGHT, WIDTH = 48, 64
Document = dict[str, Any]


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def jpeg(photo: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG")
    return text(file.getvalue())


def class_map(photo: NDArray[np.uint8], *, moved: int = 0) -> NDArray[np.uint8]:
    """Three classes by brightness; the first `moved` rows say class 1."""
    drawn: NDArray[np.uint8] = (photo.mean(axis=2) // 86).clip(0, 2).astype(np.uint8)
    drawn[:moved] = 1
    return drawn


def certificate(agreement: float, *, passed: bool = True, gated: bool = True) -> Document:
    stage = {
        "batch": 1,
        "runtime": "ort",
        "device": "cpu",
        "runtime_version": "1.32.0",
        "hardware": "avx2",
        "not_finite": None,
        "passed": True,
        "reason": None,
        "agreement": 1.0,
        "decided_agreement": 1.0,
        "near_ties": 0.0004,
        "pool_ties": None,
        "unexplained": None,
        "pixels": 61440,
        "differing_pixels": 0,
        "boundary_agreement": 1.0,
        "interior_agreement": 1.0,
        "boundary_f1": 1.0,
        "miou_change": 0.0,
        "miou_change_by_class": None,
        "class_agreement": dict.fromkeys(CLASSES, 0.99),
        "worst_images": [],
    }
    last = {
        "agreement": agreement,
        "decided_agreement": agreement,
        "differing_pixels": round(61440 * (1 - agreement)),
        "boundary_agreement": 0.97,
        "interior_agreement": 0.9999,
        "boundary_f1": 0.993,
        "miou_change": -0.04,
        "passed": passed,
        "reason": None if passed else "only 93.2000% of the pixels that PyTorch decides agree, 98.0000% are asked for",
        "worst_images": [{"image": "a.png", "agreement": 0.98, "differing_pixels": 61, "boundary_share": 0.9}],
    }
    return {
        "schema": 4,
        "model": "unet",
        "precision": "int8",
        "form": "unsigned",
        "weights": "file",
        "gated": gated,
        "passed": passed,
        "first_failing_stage": None if passed else "engine",
        "proven_to": "engine",
        "images": 20,
        "images_sha256": "0" * 64,
        "reference": "PyTorch",
        "selected_among": 1,
        "inconclusive": None,
        "inconclusive_allowed": False,
        "limits": {
            "min_agreement": 0.98,
            "max_drop": 0.5,
            "max_near_ties": None,
            "max_pool_ties": None,
            "max_unexplained": None,
        },
        "departure": None,
        "stages": [{"name": "graph", **stage}, {"name": "engine", **stage, **last}],
    }


def subject(model: str, engine: str, *, agreement: float = 1.0, **changes: object) -> Document:
    runtime, _, precision = engine.partition(":")
    return {
        "id": f"{model} {engine} cpu",
        "model": model,
        "engine": engine,
        "runtime": runtime,
        "precision": precision,
        "form": "unsigned" if precision == "int8" else None,
        "device": "cpu",
        "peer": False,
        "delivered": precision,
        "delivered_share": 1.0,
        "wider": [],
        "asked": {"fp32": 0.01, "int8": 0.99} if precision == "int8" else None,
        "in_float": {"stem/Conv": "it costs 0.31 points"} if precision == "int8" else {},
        "path": f"export/{model}.{precision}.onnx",
        "sha256": "5a" * 32,
        "size_mb": 3.4,
        "height": HEIGHT,
        "width": WIDTH,
        "threads": 2,
        "classes": list(CLASSES),
        "colours": [list(colour) for colour in COLOURS],
        "random_weights": False,
        "miou": 0.89 - (1 - agreement),
        "miou_reason": None,
        "iou_by_class": {"ground": 0.98, "nucleus": 0.85 - (1 - agreement), "rim": None},
        "agreement": agreement,
        "agreement_reason": None,
        "certificate": None if runtime == "torch" else certificate(agreement),
        "memory": {"host_peak_mb": 312.0, "device_peak_mb": None, "reason": "no GPU"},
        "search": None,
        "profile": None,
        "kept": None,
        **changes,
    }


def interval(low: float, high: float) -> Document:
    return {"low": low, "high": high, "assumes_independent": False}


def rows(of: Document, median: float) -> list[Document]:
    """Both levels, batch 1 and 8."""
    return [
        {
            "subject": of["id"],
            "level": level,
            "batch": batch,
            **{name: of[name] for name in IN_ROWS},
            "runs": 130,
            "noisy": False,
            "images_per_s": 1000 * batch / ms,
            "latency_ms": {
                key: ms * part
                for key, part in {"min": 0.97, "mean": 1.02, "median": 1, "p90": 1.1, "p95": 1.2, "p99": 1.5}.items()
            },
            "median_interval": interval(ms * 0.99, ms * 1.01),
        }
        for level, factor in (("host", 0.8), ("image_to_mask", 1.0))
        for batch in (1, 8)
        for ms in [median * factor * batch]
    ]


def step(in_float: list[str], **measured: float) -> Document:
    return {"in_float": in_float, **measured, "accepted": bool(in_float), "front": True}


SEARCH = {
    "budget": {"min_agreement": 0.98, "max_drop": 0.5},
    "record": "export/unet.int8.pareto.json",
    "steps": [
        step([], low_share=1.0, agreement=0.95, miou_drop=0.9, ms=9.1),
        step(["stem/Conv"], low_share=0.97, agreement=0.999, miou_drop=0.12, ms=9.4),
    ],
}
PROFILE = [{"layer": f"encoder.{n}", "op": "Conv", "ms": 3.0 / (n + 1), "share": 0.1 / (n + 1)} for n in range(30)]


def picture(name: str, seed: int, subjects: list[Document], *, height: int = HEIGHT, width: int = WIDTH) -> Document:
    photo = photograph(height, width, seed)
    drawn = {each["id"]: class_map(photo, moved=0 if each["agreement"] == 1 else 3) for each in subjects}
    truth = class_map(photo, moved=1)
    return {
        "name": name,
        "height": height,
        "width": width,
        "photo": jpeg(photo),
        "truth": text(images.mask_png(truth, COLOURS)),
        "masks": {key: text(images.mask_png(drawn_map, COLOURS)) for key, drawn_map in drawn.items()},
        "agreement": {each["id"]: each["agreement"] for each in subjects},
    }


def document(*models: str, pictures: int = 2) -> Document:
    """Each network in PyTorch, ONNX Runtime and OpenVINO, and in another tool; OpenVINO's int8 draws wrong masks."""
    found: list[tuple[Document, float]] = []
    for scale, model in enumerate(models or ("unet",), 1):
        failing = subject(model, "ov:int8", agreement=0.932, certificate=certificate(0.932, passed=False))
        peer = subject(model, "plain onnxruntime", agreement=0.991, peer=True, precision="int8", certificate=None)
        narrow = subject(model, "ort:int8", agreement=0.9987, search=SEARCH, profile=PROFILE)
        found += [
            (subject(model, "torch:fp32"), 30.0 * scale),
            (subject(model, "ort:fp32"), 21.5 * scale),
            (narrow, 9.4 * scale),
            (failing, 7.7 * scale),
            (peer, 12.1 * scale),
        ]
    subjects = [each for each, _ in found]
    return {
        "schema": 4,
        "kind": "bench",
        "made_at": "2026-11-27T00:40:00.000+00:00",
        "command": "segdeploy bench --all --data nuclei --save unet.json",
        "version": "0.1.0",
        "commit": "abc1234",
        "machine": {
            "processor": "AMD EPYC",
            "instruction_set": "avx2",
            "cores": 2,
            "affinity": [0, 1],
            "memory_mb": 24105,
            "gpu": None,
            "system": "Linux",
            "python": "3.11.7",
            "packages": {"numpy": "2.4.6"},
        },
        "conditions": {
            "seconds": 61.2,
            "steal_share": 0.0,
            "others_share": 0.01,
            "cgroup_throttled_s": None,
            "thermal_throttles": None,
            "clock_mhz": {"min": 2400.0, "max": 2450.0},
            "gpu": None,
            "flags": [],
        },
        "data": "nuclei",
        "images": 20,
        "skipped": [],
        "subjects": subjects,
        "rows": [row for each, median in found for row in rows(each, median)],
        "ratios": [{"engine": "ort:int8", "batch": 1, "ratio": 0.44, "interval": interval(0.43, 0.45)}],
        "comparison": None,
        "pictures": [picture(f"{index}.png", index, subjects) for index in range(pictures)],
        "failures": [],
    }


def least() -> Document:
    """Only what a result of the earlier schema cannot do without."""
    return {
        "schema": 2,
        "kind": "bench",
        "subjects": [{"id": "a", "model": "unet", "engine": "ort:fp32"}],
        "rows": [{"subject": "a", "level": "host", "batch": 1, "latency_ms": {"median": 12.3}}],
    }


def changed(of: Document, **changes: object) -> Document:
    return {**copy.deepcopy(of), **changes}


def saved(folder: Path, *documents: Document) -> list[Path]:
    paths = [folder / f"{index}.json" for index in range(len(documents))]
    for path, content in zip(paths, documents, strict=True):
        path.write_text(json.dumps(content))
    return paths
