"""OpenVINO on the CPU: the second runtime for every graph of its form, and often the faster one."""

import os
import threading
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from segdeploy.artifact import Artifact
from segdeploy.engines._base import ClassMaps, Engine, Images, missing, on_cpu, unknown_device
from segdeploy.errors import InvalidFileError
from segdeploy.spec import SPEC_KEY, Precision, Spec

RUNTIME = "ov"
OPENS = "graph"
PACKAGES = ("openvino",)
DEVICES = ("cpu",)
CONCURRENT = True
FORM = "unsigned"


class OvEngine(Engine):
    runtime: ClassVar[str] = RUNTIME
    concurrent: ClassVar[bool] = CONCURRENT

    def __init__(self, compiled: Any, spec: Spec, *, delivered: Precision) -> None:  # noqa: ANN401
        super().__init__(spec, device="cpu", delivered=delivered)
        self._compiled = compiled
        self._lock = threading.Lock()
        self._idle: list[Any] = []  # requests; each serves one call at a time

    def _classify(self, batch: Images) -> ClassMaps:
        with self._lock:
            request = self._idle.pop() if self._idle else self._compiled.create_infer_request()
        try:
            found: ClassMaps = request.infer([batch])[0]
            # The request's own memory is written to again by the next call.
            return found.copy() if found.dtype == np.uint8 else found.argmax(axis=1).astype(np.uint8)
        except RuntimeError as error:
            raise InvalidFileError(
                f"OpenVINO failed on a batch of {len(batch)}: {_reason(error)}",
                "Give a smaller batch or fewer threads, or export the graph again.",
            ) from error
        finally:
            with self._lock:
                self._idle.append(request)

    def _release(self) -> None:
        del self._idle, self._compiled


def open(  # noqa: A001 - the name every engine module has
    artifact: Artifact, *, device: str, threads: int | None = None
) -> OvEngine:
    """`threads` of one call; the cores that remain serve other calls at the same time."""
    ov = import_runtime()
    if device not in DEVICES:
        raise unknown_device(RUNTIME, device, DEVICES)
    remedy = f"Export it again: segdeploy export --model {artifact.spec.model}"
    try:
        core = ov.Core()
        model = core.read_model(str(artifact.path))
        compiled = core.compile_model(model, "CPU", _settings(threads))
    except RuntimeError as error:
        raise InvalidFileError(f"OpenVINO cannot open {artifact.path}: {_reason(error)}", remedy) from error
    if not _carries(model, artifact.spec):
        raise InvalidFileError(f"{artifact.path} carries another Spec than its manifest.", remedy)
    engine = OvEngine(compiled, artifact.spec, delivered=on_cpu(artifact.precision))
    # OpenVINO 2026.4's binding fills tables of its own at the first call: two first calls at once wait for one another.
    engine.classify(np.zeros((1, artifact.spec.height, artifact.spec.width, 3), np.uint8))
    return engine


def import_runtime() -> ModuleType:
    try:
        import openvino
    except ImportError as error:
        raise missing("openvino", "openvino") from error
    runtime: ModuleType = openvino
    return runtime


def devices() -> list[str]:
    import_runtime()
    return list(DEVICES)


def narrow_convolutions(artifact: Artifact, *, device: str) -> dict[str, Precision]:  # noqa: ARG001 - one device
    """The convolutions that are really computed in a narrow type, read from the graph as the runtime optimised it."""
    ov = import_runtime()
    core = ov.Core()
    graph = core.compile_model(core.read_model(str(artifact.path)), "CPU", _settings(None)).get_runtime_model()
    found: dict[str, Precision] = {}
    for node in graph.get_ops():
        facts = node.get_rt_info()
        kind = facts["layerType"].astype(str)
        if kind not in {"Convolution", "Deconvolution"}:
            continue
        precision = _TYPES.get(str(node.input(1).get_element_type().get_type_name()))
        if precision is not None:
            found |= dict.fromkeys(facts["originalLayersNames"].astype(str).split(","), precision)
    return found


_TYPES = {"i8": Precision.INT8, "u8": Precision.INT8, "f16": Precision.FP16}


def _settings(threads: int | None) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0))
    return {
        "INFERENCE_PRECISION_HINT": "f32",  # of what the graph leaves in float: bf16 was not asked for
        "INFERENCE_NUM_THREADS": cores,
        "NUM_STREAMS": max(1, cores // (threads or cores)),
    }


def _carries(model: Any, spec: Spec) -> bool:  # noqa: ANN401 - the module is lazy
    path = ["framework", SPEC_KEY]
    return bool(model.has_rt_info(path)) and model.get_rt_info(path).astype(str) == spec.to_json()


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
