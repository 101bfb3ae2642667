"""The runtimes: one public file each, found by listing the folder (a leading underscore is no engine)."""

import importlib
import pkgutil
from typing import cast

from segdeploy.artifact import Artifact
from segdeploy.engines._base import Engine, EngineModule, installed
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.spec import Precision

DEFAULT = "ort"

__all__ = ["DEFAULT", "Engine", "EngineModule", "installed", "modules", "names", "open_engine", "parse"]


def modules() -> dict[str, EngineModule]:
    """Every engine module by its runtime's name; none of them imports its runtime before it is asked to."""
    files = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    found = [cast("EngineModule", importlib.import_module(f"{__name__}.{name}")) for name in files]
    return {module.RUNTIME: module for module in found}


def names() -> list[str]:
    return sorted(modules())


def parse(text: str) -> tuple[str, Precision]:
    """`[RUNTIME:]PRECISION` -> the two; without a runtime, ONNX Runtime."""
    runtime, _, precision = text.rpartition(":")
    runtime = runtime or DEFAULT
    if runtime not in modules():
        raise InvalidRequestError(f"there is no runtime {runtime!r}.", f"Choose one of {', '.join(names())}.")
    if precision not in {known.value for known in Precision}:
        raise InvalidRequestError(
            f"there is no precision {precision!r}.",
            "Give [RUNTIME:]PRECISION, such as fp32 or ort:fp32.",
        )
    return runtime, Precision(precision)


def open_engine(artifact: Artifact, *, runtime: str, device: str = "auto", threads: int | None = None) -> Engine:
    """Load a file into a runtime. `device`: cpu, cuda, or auto (the first the installed runtime was built for).

    `threads`: how many the runtime may use for one call; None leaves all cores to it.
    """
    module = modules()[runtime]
    if artifact.form not in {None, module.FORM}:
        raise InvalidFileError(
            f"{artifact.path} is in the {artifact.form} form; {runtime} is exact in {module.FORM or 'none'}.",
            f"Make the other form: segdeploy export --model {artifact.spec.model} --precision int8",
        )
    chosen = module.devices()[0] if device == "auto" else device
    return module.open(artifact, device=chosen, threads=threads)
