"""What is here: what a file promises, which networks and weights there are, which runtimes, and what is missing."""

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segdeploy import artifact, engines, models, signature
from segdeploy.checkpoints import checkpoint
from segdeploy.errors import SegdeployError
from segdeploy.making import CHECKPOINTS, PACKAGED
from segdeploy.timing import machine, runtime_selection


def inspect(path: Path) -> dict[str, Any]:
    """What a checkpoint, a graph or a plan promises, where it came from and what was proven of it."""
    found = checkpoint.read(path) if path.suffix == ".safetensors" else artifact.read(path)
    fields = dataclasses.asdict(found)
    trust = {"trust": _trust_in(path)} if found.kind == "plan" else {}
    return {"schema": artifact.SCHEMA, **fields, "path": str(path), "size_mb": path.stat().st_size / 1e6, **trust}


def _trust_in(plan: Path) -> dict[str, Any]:
    """Whether a plan would be opened here, as far as its manifest goes; its sha256 is what `trust` takes."""
    sha256 = artifact.sha256(artifact.manifest_path(plan))
    try:
        signature.read(plan)
    except SegdeployError as error:
        return {"admitted": False, "reason": error.what, "manifest_sha256": sha256}
    reason = "it is in the list of `segdeploy trust`" if sha256 in signature.trusted() else "it is signed with this key"
    return {"admitted": True, "reason": reason, "manifest_sha256": sha256}


def list_models() -> dict[str, Any]:
    """Every network, its options with their defaults, and the weights that are at hand."""
    listed = [
        {
            "name": name,
            "description": models.description(name),
            "options": models.defaults(name),
            "weights": _weights_at_hand(name),
        }
        for name in models.names()
    ]
    return {"schema": 1, "models": listed}


def _weights_at_hand(name: str) -> list[dict[str, Any]]:
    places = {"file": CHECKPOINTS, "packaged": PACKAGED}
    found = {kind: place / f"{name}.safetensors" for kind, place in places.items()}
    return [
        {"kind": kind, "path": str(path), "val_miou": checkpoint.read(path).made_by.get("val_miou")}
        for kind, path in found.items()
        if path.is_file()
    ]


def doctor() -> dict[str, Any]:
    """What is installed and usable, what clashes, what would be chosen, and what to do."""
    checks = [_check(name, module) for name, module in engines.modules().items()]
    checks += [_importable("export", ("torch", "onnx", "onnxscript", "safetensors"), "train")]
    checks += [_importable("tensorboard", ("tensorboard",), "tensorboard")]
    order = [
        {
            "runtime": each.runtime,
            "device": each.device,
            "usable": each.obstacle is None,
            "reason": None if each.obstacle is None else each.obstacle.what,
        }
        for each in runtime_selection.candidates()
    ]
    return {
        "schema": 2,
        "machine": machine.describe(),
        "checks": checks,
        "order": order,
        "clash": any(check["clash"] for check in checks),
    }


def _check(name: str, module: engines.EngineModule) -> dict[str, Any]:
    installed = engines.installed(module.PACKAGES)
    clash = len(installed) > 1
    fields = {"name": f"engine {name}", "clash": clash}
    if clash:
        remedy = f"pip uninstall -y {' '.join(installed)}; then install one of them"
        return {
            **fields,
            "usable": False,
            "finding": f"{' and '.join(installed)} overwrite each other",
            "remedy": remedy,
        }
    try:
        version = module.import_runtime().__version__
    except SegdeployError as error:
        return {**fields, "usable": False, "finding": error.what, "remedy": error.remedy}
    try:
        where = ", ".join(module.devices())
    except SegdeployError as error:
        return {**fields, "usable": False, "finding": f"{version}: {error.what}", "remedy": error.remedy}
    return {**fields, "usable": True, "finding": f"{version} on {where}", "remedy": None}


def _importable(purpose: str, packages: Sequence[str], extra: str) -> dict[str, Any]:
    absent = [package for package in packages if importlib.util.find_spec(package) is None]
    return {
        "name": purpose,
        "clash": False,
        "usable": not absent,
        "finding": f"{', '.join(absent)} not installed" if absent else f"{', '.join(packages)} installed",
        "remedy": f"pip install 'segdeploy[{extra}]'" if absent else None,
    }
