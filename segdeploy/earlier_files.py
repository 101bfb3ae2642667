"""Manifests, checkpoints and records of searches that segdeploy 0.1 wrote, put into today's words."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from segdeploy import certificate

FIRST_SCHEMA, SECOND_SCHEMA = 1, 2
Document = Mapping[str, Any]


def manifest(document: object) -> object:
    """A manifest of schema 1 or 2 as one of schema 3; anything else as it is."""
    if not isinstance(document, dict):
        return document
    if document.get("schema") == SECOND_SCHEMA:
        found = {"certificate_as_asked": None, **document, "schema": 3}
        if "certificate" in found:
            found["certificate"] = proof(found["certificate"], document)
        return found
    if document.get("schema") != FIRST_SCHEMA:
        return document
    made_by = document.get("made_by")
    if not isinstance(made_by, dict):
        return document
    kept = {name: value for name, value in document.items() if name not in {"made_by", "parity"}}
    precision, kind = document.get("precision"), document.get("kind")
    return {
        "form": None,
        **kept,
        "schema": 3,
        "origin": origin(made_by),
        "certificate_as_asked": None,
        "certificate": proof(document.get("parity"), document),
        "low_precision": _low_precision(made_by) if kind == "graph" and precision != "fp32" else None,
        "plan": _plan(made_by) if kind == "plan" else None,
    }


def origin(made_by: Document) -> dict[str, Any]:
    """What a file was made by, of a manifest or of a checkpoint."""
    weights, calibration = made_by.get("weights"), made_by.get("calibration") or made_by.get("range")
    return {
        "command": made_by.get("command", "export"),
        "version": made_by.get("version", ""),
        "weights": {"path": None, **weights} if isinstance(weights, dict) else weights,
        "graph": made_by.get("graph"),
        "calibration": _calibration(calibration),
        "opset": made_by.get("opset"),
        "torch": made_by.get("torch"),
        "training": _training(made_by),
    }


def _calibration(found: object) -> object:
    if not isinstance(found, dict):
        return found
    return {"method": "extremes", "images": {}, "skipped": {}, "cache": {}, **found}


def _training(made_by: Document) -> dict[str, Any] | None:
    if "epoch" not in made_by:
        return None
    kept = {name: made_by.get(name) for name in ("epoch", "val_miou", "best")}
    return {**kept, "plan": made_by.get("plan", {}), "validation": [], "folder": None}


def with_validation(origin: object) -> object:
    """An origin whose training remembers no images, as one that says so."""
    if not isinstance(origin, dict) or not isinstance(origin.get("training"), dict):
        return origin
    return {**origin, "training": {"validation": [], "folder": None, **origin["training"]}}


def proof(parity: object, made: Document) -> object:
    """A parity report of schema 1 to 3 as a certificate; `made` says the model, where the report does not.

    Those did not say what they were made on and in what arithmetic: they count as no proof here.
    """
    if not isinstance(parity, dict) or parity.get("schema") == certificate.SCHEMA:
        return parity
    spec = made.get("spec")
    model = spec.get("model") if isinstance(spec, dict) else None
    about = {"model": model, "precision": made.get("precision"), "form": made.get("form")}
    limits = parity.get("limits") or {"min_agreement": 0.0, "max_drop": 0.0}
    stages = parity.get("stages")
    absent = {
        "departure": None,
        "weights": "file",
        "gated": True,
        "images_sha256": None,
        "reference": "PyTorch",
        "selected_among": 1,
        "inconclusive": None,
        "inconclusive_allowed": False,
    }
    return {
        **about,
        **absent,
        **parity,
        "schema": certificate.SCHEMA,
        "stages": [_stage(stage) for stage in stages] if isinstance(stages, list) else stages,
        "limits": {**dict.fromkeys(_names(certificate.Limits)), **limits} if isinstance(limits, dict) else limits,
    }


def _stage(stage: object) -> object:
    if not isinstance(stage, dict):
        return stage
    return {**dict.fromkeys(_names(certificate.Stage)), "worst_images": [], "batch": 1, **stage}


def _low_precision(made_by: Document) -> dict[str, Any]:
    executed = made_by.get("delivered") or {}
    is_object = isinstance(executed, dict)
    return {
        "budget": made_by.get("budget"),
        "in_float": made_by.get("in_float", {}),
        "low_share": made_by.get("narrow_share", 1.0),
        "asked": made_by.get("asked", {}),
        "executed": {name: _executed(found) for name, found in executed.items()} if is_object else executed,
    }


def _executed(found: object) -> object:
    if not isinstance(found, dict):
        return found
    return {"reason": None, **{name: found.get(name) for name in ("delivered", "delivered_share", "wider", "reason")}}


def _plan(made_by: Document) -> dict[str, Any]:
    kept = ("runtime", "runtime_version", "system", "size", "calibration_sha256", "asked", "typed")
    options = made_by.get("options")
    timing_cache_sha256 = None
    if isinstance(options, dict):
        timing_cache_sha256 = options.get("timing_cache_sha256")
        options = {name: value for name, value in options.items() if name != "timing_cache_sha256"}
    of_gpu = ("compute_capability", "gpu", "driver", "cuda")
    return {
        **{name: made_by.get(name) for name in kept},
        "timing_cache_sha256": timing_cache_sha256,
        "options": options,
        "target": {name: made_by.get(name) for name in of_gpu},
        "executed": _executed(made_by),
    }


def search_record(document: object) -> object:
    """The record of a search, of schema 1 as one of schema 2; anything else as it is."""
    if not isinstance(document, dict) or document.get("schema") != FIRST_SCHEMA or "steps" not in document:
        return document
    steps = document["steps"]
    return {**document, "schema": 2, "steps": [_search_step(each) for each in steps] if isinstance(steps, list) else []}


def _search_step(step: object) -> object:
    if not isinstance(step, dict):
        return step
    kept = {name: value for name, value in step.items() if name != "narrow_share"}
    return {**kept, "low_share": step.get("narrow_share")}


def _names(kind: Any) -> list[str]:  # noqa: ANN401 - a dataclass
    return [field.name for field in dataclasses.fields(kind)]
