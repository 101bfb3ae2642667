"""OpenVINO on the CPU: the second runtime for every graph of its form, and often the faster one."""

import contextlib
import functools
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from segdeploy import artifact as artifacts
from segdeploy import cores, external_data, extras
from segdeploy.artifact import Artifact
from segdeploy.engines._base import RUN, ClassMaps, Engine, Images, RunOptions, on_cpu, unknown_device
from segdeploy.engines._layers import WARMUP, NodeTime
from segdeploy.errors import InvalidFileError, MissingRuntimeError
from segdeploy.spec import SPEC_KEY, Precision, Spec

if TYPE_CHECKING:
    from numpy.typing import NDArray

RUNTIME = "ov"
OPENS = "graph"
PACKAGES = ("openvino",)
DEVICES = ("cpu",)
CONCURRENT = True
FORM = "unsigned"
MOST_SIZES = 4  # that are compiled by themselves; each holds weights of its own


class OvEngine(Engine):
    """Asynchronous requests: each serves one batch at a time, and as many run at once as there are streams.

    The graph is compiled for every batch size by itself: OpenVINO runs fixed shapes up to a quarter faster. A request
    that is over goes back into the pool of its size, its memory with it.
    """

    runtime: ClassVar[str] = RUNTIME
    concurrent: ClassVar[bool] = CONCURRENT

    def __init__(
        self, compiled: Callable[[int | None], Any], spec: Spec, *, delivered: Precision, alone: bool = False
    ) -> None:
        super().__init__(spec, device="cpu", delivered=delivered)
        self.alone = alone
        self._compile = compiled
        self._lock = threading.Lock()
        self._compiled: dict[int | None, Any] = {}  # by batch size; None takes any
        self._idle: dict[int | None, list[Any]] = {}
        with self._lock:
            streams = int(self._for(1).get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self.in_flight = streams + 1  # no stream waits for whoever collects

    def _for(self, size: int | None) -> Any:  # noqa: ANN401 - a compiled graph
        """The graph for a batch size, its first call made.

        The binding of OpenVINO 2026.4 fills tables at a first call; two first calls at once wait for one another.
        """
        if size not in self._compiled:
            compiled = self._compile(size)
            with _failing(size):
                request = compiled.create_infer_request()
                request.infer([np.zeros((size or 1, self.spec.height, self.spec.width, 3), np.uint8)])
            self._compiled[size], self._idle[size] = compiled, [request]
        return self._compiled[size]

    def _submit(self, batch: Images) -> tuple[int | None, Any]:
        with self._lock:
            self._require_open()
            size = len(batch) if len(batch) in self._compiled or len(self._compiled) < MOST_SIZES else None
            compiled = self._for(size)
            with _failing(size):
                request = self._idle[size].pop() if self._idle[size] else compiled.create_infer_request()
        with _failing(len(batch)):
            request.start_async([batch])  # copies the batch
        return size, request

    def _collect(self, pending: Any, out: ClassMaps | None) -> ClassMaps:  # noqa: ANN401 - what _submit gave
        size, request = pending
        try:
            with _failing(size):
                request.wait()
            found = request.get_output_tensor(0).data  # the request's own memory: its next batch writes there
            if found.dtype == np.uint8 and out is None:
                return np.array(found)
            return super()._collect(found if found.dtype == np.uint8 else found.argmax(axis=1).astype(np.uint8), out)
        finally:
            with self._lock:
                self._idle.setdefault(size, []).append(request)

    def _release(self) -> None:
        with self._lock:
            self._compiled.clear()
            self._idle.clear()


def open(  # noqa: A001 - the name every engine module has
    artifact: Artifact, *, device: str, options: RunOptions = RUN
) -> OvEngine:
    """The hint decides over cores and streams; for latency, with threads of one call, the other cores serve others."""
    core = _core()
    if device not in DEVICES:
        raise unknown_device(RUNTIME, device, DEVICES)
    remedy = f"Export it again: segdeploy export --model {artifact.spec.name}"
    external_data.require_contained(artifact.path)
    with _refused(f"OpenVINO cannot open {artifact.path}", remedy):
        model = core.read_model(str(artifact.path))
    if not _carries(model, artifact.spec):
        raise InvalidFileError(f"{artifact.path} carries another Spec than its manifest.", remedy)
    settings = {**_settings(options), **_cache()}

    def compiled(size: int | None) -> Any:  # noqa: ANN401 - a compiled graph
        with _refused(f"OpenVINO cannot compile {artifact.path} for a batch of {size}", remedy):
            return core.compile_model(_of_size(model, size), "CPU", settings)

    alone = model.input(0).partial_shape[0] == 1
    return OvEngine(compiled, artifact.spec, delivered=on_cpu(artifact.precision), alone=alone)


@extras.named_where_missing()
def import_runtime() -> ModuleType:
    import openvino

    runtime: ModuleType = openvino
    return runtime


@functools.cache
def _core() -> Any:  # noqa: ANN401 - the module is lazy
    """One for the process, never given back.

    Each core of OpenVINO 2026.4 gives the thread a stack for its signals and puts back the one it found, also where
    the core that owned it is gone by then: Ctrl-C after that ends the process as a segmentation fault.
    """
    return import_runtime().Core()


def devices() -> list[str]:
    import_runtime()
    return list(DEVICES)


def low_precision_layers(artifact: Artifact, *, device: str) -> dict[str, Precision]:  # noqa: ARG001 - one device
    """The layers that are really computed in low precision, read from the graph as the runtime optimised it."""
    core = _core()
    model = _of_size(core.read_model(str(artifact.path)), 1)
    graph = core.compile_model(model, "CPU", _settings(RUN)).get_runtime_model()
    found: dict[str, Precision] = {}
    for node in graph.get_ops():
        facts = node.get_rt_info()
        kind = facts["layerType"].astype(str)
        if kind not in {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}:
            continue
        precision = _TYPES.get(str(node.input(1).get_element_type().get_type_name()))
        if precision is not None:
            found |= dict.fromkeys(facts["originalLayersNames"].astype(str).split(","), precision)
    return found


def tensors(graph: bytes, batch: Images, *, device: str) -> "dict[str, NDArray[Any]]":  # noqa: ARG001 - one device
    """Every output of a graph, by name: `parity --bisect` runs copies that also give the tensors around each layer."""
    core = _core()
    compiled = core.compile_model(_of_size(core.read_model(graph), len(batch)), "CPU", _settings(RUN))
    return {name: np.array(found) for port, found in compiled([batch]).items() for name in port.get_names()}


def layer_ms(
    artifact: Artifact,
    *,
    device: str,  # noqa: ARG001 - one device
    images: Images,
    runs: int,
    options: RunOptions = RUN,
) -> list[NodeTime]:
    """The time of each node, from the counters of a request; the compiled graph says which layers it stands for."""
    core = _core()
    model = _of_size(core.read_model(str(artifact.path)), len(images))
    compiled = core.compile_model(model, "CPU", {**_settings(options), "PERF_COUNT": True})
    request = compiled.create_infer_request()
    for _ in range(WARMUP):
        request.infer([images])
    ms: defaultdict[str, float] = defaultdict(float)
    kinds: dict[str, str] = {}
    for _ in range(runs):
        request.infer([images])
        for node in request.get_profiling_info():
            ms[node.node_name] += node.real_time.total_seconds() * 1000 / runs
            kinds[node.node_name] = node.node_type
    return [_node_time(op, ms, kinds) for op in compiled.get_runtime_model().get_ordered_ops()]


def _node_time(op: Any, ms: defaultdict[str, float], kinds: dict[str, str]) -> NodeTime:  # noqa: ANN401 - the module is lazy
    name, facts = op.get_friendly_name(), op.get_rt_info()
    stands_for = facts["originalLayersNames"].astype(str).split(",")
    reads = tuple(read.get_source_output().get_node().get_friendly_name() for read in op.inputs())
    return NodeTime(name, kinds.get(name, facts["layerType"].astype(str)), ms[name], tuple(stands_for), reads)


_TYPES = {"i8": Precision.INT8, "u8": Precision.INT8, "f16": Precision.FP16}


def _of_size(model: Any, size: int | None) -> Any:  # noqa: ANN401 - the module is lazy
    if size is None:
        return model
    fixed = model.clone()
    fixed.reshape([size, *list(fixed.input(0).partial_shape)[1:]])
    return fixed


def _settings(options: RunOptions) -> dict[str, Any]:
    usable = cores.usable()
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",  # of what the graph leaves in float: bf16 was not asked for
        "INFERENCE_NUM_THREADS": usable,
    }
    if options.threads and options.hint == "latency":
        return {**settings, "NUM_STREAMS": max(1, usable // options.threads)}
    return {**settings, "PERFORMANCE_HINT": options.hint.upper()}


def _cache() -> dict[str, str]:
    """Where OpenVINO keeps what it compiled; nowhere, where that folder cannot be written to."""
    try:
        folder = artifacts.cache_folder() / "openvino"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, MissingRuntimeError):
        return {}
    return {"CACHE_DIR": str(folder)} if os.access(folder, os.W_OK) else {}


def _carries(model: Any, spec: Spec) -> bool:  # noqa: ANN401 - the module is lazy
    path = ["framework", SPEC_KEY]
    return bool(model.has_rt_info(path)) and model.get_rt_info(path).astype(str) == spec.to_json()


def _failing(size: int | None) -> contextlib.AbstractContextManager[None]:
    remedy = "Give a smaller batch or fewer threads, or export the graph again."
    return _refused(f"OpenVINO failed on a batch of {size or 'images'}", remedy)


@contextlib.contextmanager
def _refused(what: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise InvalidFileError(f"{what}: {_reason(error)}", remedy) from error


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
