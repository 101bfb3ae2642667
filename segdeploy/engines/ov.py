"""OpenVINO on the CPU: the second runtime for every graph of its form, and often the faster one."""

import os
import threading
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from segdeploy import artifact as artifacts
from segdeploy.artifact import Artifact
from segdeploy.engines._base import RUN, ClassMaps, Engine, Images, RunOptions, missing, on_cpu, unknown_device
from segdeploy.errors import InvalidFileError
from segdeploy.spec import SPEC_KEY, Precision, Spec

RUNTIME = "ov"
OPENS = "graph"
PACKAGES = ("openvino",)
DEVICES = ("cpu",)
CONCURRENT = True
FORM = "unsigned"


class OvEngine(Engine):
    """Asynchronous requests: each serves one batch at a time, and as many run at once as there are streams.

    A request that is over goes back into the pool, its memory with it.
    """

    runtime: ClassVar[str] = RUNTIME
    concurrent: ClassVar[bool] = CONCURRENT

    def __init__(self, compiled: Any, spec: Spec, *, delivered: Precision) -> None:  # noqa: ANN401
        super().__init__(spec, device="cpu", delivered=delivered)
        self.in_flight = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._compiled = compiled
        self._lock = threading.Lock()
        self._idle: list[Any] = []

    def _submit(self, batch: Images) -> Any:  # noqa: ANN401 - a request
        with self._lock:
            request = self._idle.pop() if self._idle else self._compiled.create_infer_request()
        request.start_async([batch])  # copies the batch
        return request

    def _collect(self, pending: Any, out: ClassMaps | None) -> ClassMaps:  # noqa: ANN401 - a request
        try:
            pending.wait()
            found = pending.get_output_tensor(0).data  # the request's own memory: its next batch writes there
            if found.dtype == np.uint8 and out is None:
                return np.array(found)
            return super()._collect(found if found.dtype == np.uint8 else found.argmax(axis=1).astype(np.uint8), out)
        except RuntimeError as error:
            raise InvalidFileError(
                f"OpenVINO failed on a batch of {len(pending.get_input_tensor(0).data)}: {_reason(error)}",
                "Give a smaller batch or fewer threads, or export the graph again.",
            ) from error
        finally:
            with self._lock:
                self._idle.append(pending)

    def _release(self) -> None:
        del self._idle, self._compiled


def open(  # noqa: A001 - the name every engine module has
    artifact: Artifact, *, device: str, options: RunOptions = RUN
) -> OvEngine:
    """With `options.threads` of one call, the cores that remain serve other calls; else the hint decides."""
    ov = import_runtime()
    if device not in DEVICES:
        raise unknown_device(RUNTIME, device, DEVICES)
    remedy = f"Export it again: segdeploy export --model {artifact.spec.model}"
    try:
        core = ov.Core()
        model = core.read_model(str(artifact.path))
        compiled = core.compile_model(model, "CPU", {**_settings(options), **_cache()})
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
    graph = core.compile_model(core.read_model(str(artifact.path)), "CPU", _settings(RUN)).get_runtime_model()
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


def _settings(options: RunOptions) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0))
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",  # of what the graph leaves in float: bf16 was not asked for
        "INFERENCE_NUM_THREADS": cores,
    }
    if options.threads:
        return {**settings, "NUM_STREAMS": max(1, cores // options.threads)}
    return {**settings, "PERFORMANCE_HINT": options.hint.upper()}


def _cache() -> dict[str, str]:
    """Where OpenVINO keeps what it compiled; nowhere, where that folder cannot be written to."""
    folder = artifacts.cache_folder() / "openvino"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return {}
    return {"CACHE_DIR": str(folder)} if os.access(folder, os.W_OK) else {}


def _carries(model: Any, spec: Spec) -> bool:  # noqa: ANN401 - the module is lazy
    path = ["framework", SPEC_KEY]
    return bool(model.has_rt_info(path)) and model.get_rt_info(path).astype(str) == spec.to_json()


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
