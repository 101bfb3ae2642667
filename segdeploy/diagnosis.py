"""What is installed, what is usable, what clashes, and what to do about it."""

import dataclasses
import importlib.util
from collections.abc import Sequence

from segdeploy import engines
from segdeploy.errors import SegdeployError
from segdeploy.timing import machine, runtime_selection
from segdeploy.timing.result_types import Machine


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One runtime or package: what was found, and what to do where it is not usable."""

    name: str
    clash: bool = False
    usable: bool
    finding: str
    remedy: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A runtime on a device, in the order in which an engine without a runtime is looked for."""

    runtime: str
    device: str
    usable: bool
    reason: str | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """`clash`: two packages that overwrite each other are installed."""

    schema: int = 2
    machine: Machine
    checks: tuple[Check, ...]
    order: tuple[Place, ...]
    clash: bool


def diagnose() -> Diagnosis:
    """What is installed and usable, what clashes, what would be chosen, and what to do."""
    checks = [_check(name, module) for name, module in engines.modules().items()]
    checks += [_importable("export", ("torch", "onnx", "onnxscript", "safetensors"), "train")]
    checks += [_importable("tensorboard", ("tensorboard",), "tensorboard")]
    order = [
        Place(
            runtime=each.runtime,
            device=each.device,
            usable=each.obstacle is None,
            reason=None if each.obstacle is None else each.obstacle.what,
        )
        for each in runtime_selection.candidates()
    ]
    return Diagnosis(
        machine=machine.describe(),
        checks=tuple(checks),
        order=tuple(order),
        clash=any(check.clash for check in checks),
    )


def _check(name: str, module: engines.EngineModule) -> Check:
    installed, title = engines.installed(module.PACKAGES), f"engine {name}"
    if len(installed) > 1:
        finding = f"{' and '.join(installed)} overwrite each other"
        remedy = f"pip uninstall -y {' '.join(installed)}; then install one of them"
        return Check(name=title, clash=True, usable=False, finding=finding, remedy=remedy)
    try:
        version = module.import_runtime().__version__
    except SegdeployError as error:
        return Check(name=title, usable=False, finding=error.what, remedy=error.remedy)
    try:
        where = ", ".join(module.devices())
    except SegdeployError as error:
        return Check(name=title, usable=False, finding=f"{version}: {error.what}", remedy=error.remedy)
    return Check(name=title, usable=True, finding=f"{version} on {where}")


def _importable(purpose: str, packages: Sequence[str], extra: str) -> Check:
    absent = [package for package in packages if importlib.util.find_spec(package) is None]
    if not absent:
        return Check(name=purpose, usable=True, finding=f"{', '.join(packages)} installed")
    finding, remedy = f"{', '.join(absent)} not installed", f"pip install 'segdeploy[{extra}]'"
    return Check(name=purpose, usable=False, finding=finding, remedy=remedy)
