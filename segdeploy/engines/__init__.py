"""The runtimes: one public file each, found by listing the folder (a leading underscore is no engine)."""

import importlib
import pkgutil
from typing import cast

from segdeploy.artifact import Artifact
from segdeploy.engines._base import (
    BUILD,
    ENOUGH,
    RUN,
    Arithmetic,
    ClassMaps,
    CompilingModule,
    Engine,
    EngineModule,
    GraphModule,
    Images,
    ProfilingModule,
    RunOptions,
    Ticket,
    arithmetic,
    installed,
    on_cpu,
    unknown_device,
)
from segdeploy.engines._layers import NodeTime
from segdeploy.engines._name import EngineFile, EngineName
from segdeploy.engines._null import NullEngine
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.spec import Precision
from segdeploy.target import BuildOptions, Gpu

REFERENCE = "ort"  # what proofs run in, and what runs where nothing else does

__all__ = [
    "BUILD",
    "ENOUGH",
    "REFERENCE",
    "RUN",
    "Arithmetic",
    "BuildOptions",
    "ClassMaps",
    "CompilingModule",
    "Engine",
    "EngineFile",
    "EngineModule",
    "EngineName",
    "GraphModule",
    "Images",
    "NodeTime",
    "NullEngine",
    "ProfilingModule",
    "RunOptions",
    "Ticket",
    "compiling",
    "computes_with",
    "device_of",
    "gpu_here",
    "installed",
    "modules",
    "names",
    "of_graphs",
    "on_cpu",
    "open_engine",
    "parse",
    "unknown_device",
]


def modules() -> dict[str, EngineModule]:
    """Every engine module by its runtime's name; none of them imports its runtime before it is asked to."""
    files = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    found = [cast("EngineModule", importlib.import_module(f"{__name__}.{name}")) for name in files]
    return {module.RUNTIME: module for module in found}


def names() -> list[str]:
    return sorted(modules())


def of_graphs(runtime: str) -> GraphModule:
    """The module of a runtime that opens graphs."""
    return cast("GraphModule", modules()[runtime])


def compiling(runtime: str) -> CompilingModule:
    """The module of a runtime that opens plans, and compiles them."""
    return cast("CompilingModule", modules()[runtime])


def parse(text: str) -> EngineName:
    """`[RUNTIME:]PRECISION`, such as fp32 or ort:int8. Raise InvalidRequestError where either is unknown."""
    runtime, _, precision = text.rpartition(":")
    if runtime and runtime not in modules():
        raise InvalidRequestError(f"there is no runtime {runtime!r}.", f"Choose one of {', '.join(names())}.")
    if precision not in {known.value for known in Precision}:
        raise InvalidRequestError(
            f"there is no precision {precision!r}.",
            "Give [RUNTIME:]PRECISION, such as fp32 or ort:fp32.",
        )
    return EngineName(runtime or None, Precision(precision))


def computes_with(runtime: str, device: str) -> Arithmetic:
    """What an engine of a runtime computes with on a device of this machine."""
    return arithmetic(modules()[runtime], device)


def gpu_here() -> Gpu:
    """The first GPU that CUDA sees. Raise MissingRuntimeError where there is none, or no package that reaches it."""
    from segdeploy.engines import _cuda

    return _cuda.gpu_here()


def open_engine(artifact: Artifact, *, runtime: str, device: str = "auto", options: RunOptions = RUN) -> Engine:
    """Load a file into a runtime. `device`: cpu, cuda, or auto (the first the installed runtime was built for)."""
    module = modules()[runtime]
    if artifact.form not in {None, module.FORM}:
        raise InvalidFileError(
            f"{artifact.path} is in the {artifact.form} form; {runtime} takes {module.FORM or 'none'}.",
            f"Make the other form: segdeploy export --model {artifact.spec.name} --precision int8",
        )
    if artifact.kind != module.OPENS:
        raise InvalidFileError(
            f"{artifact.path} is a {artifact.kind}; {runtime} opens a {module.OPENS}.", "Give the engine it is for."
        )
    return module.open(artifact, device=device_of(artifact, runtime, device), options=options)


def device_of(artifact: Artifact, runtime: str, device: str) -> str:
    """Where a runtime opens a file: the device that was asked for; for `auto`, its first here."""
    module = modules()[runtime]
    if device != "auto":
        return device
    # A plan is looked at before the machine is: what cannot be trusted is refused for that reason.
    return (module.DEVICES if artifact.kind == "plan" else module.devices())[0]
