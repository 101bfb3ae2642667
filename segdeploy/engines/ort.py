"""ONNX Runtime, on the CPU (the default that needs nothing) or on CUDA."""

import json
import re
import tempfile
import threading
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from segdeploy import cores, external_data, extras
from segdeploy.artifact import Artifact
from segdeploy.engines import _cuda
from segdeploy.engines._base import (
    RUN,
    ClassMaps,
    Engine,
    Images,
    RunOptions,
    installed,
    on_cpu,
    unknown_device,
)
from segdeploy.engines._layers import WARMUP, NodeTime
from segdeploy.errors import InvalidFileError, MissingRuntimeError
from segdeploy.spec import SPEC_KEY, Precision, Spec

if TYPE_CHECKING:
    from numpy.typing import NDArray

RUNTIME = "ort"
OPENS = "graph"
PACKAGES = ("onnxruntime", "onnxruntime-gpu")
DEVICES = ("cuda", "cpu")
CONCURRENT = True
FORM = "unsigned"
PROVIDERS: dict[str, tuple[str, dict[str, str]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),  # fp32 was asked, not TensorFloat-32
}
# What the optimiser adds to the name of a node or, where it fuses or drops a cast, of a tensor.
ADDED = re.compile(r"^InsertedPrecisionFreeCast_|(_token_\d+|_nchwc)+$")
# It drops a Relu in front of any QuantizeLinear whose type it does not look at (1.32): right for int8, wrong for fp8.
WRONG_RULES = ["ReluQuantRewrite"]
INTEGER_LAYERS = ("QLinearConv", "QLinearMatMul", "MatMulIntegerToFloat", "QGemm")  # what the optimiser makes of them
FATAL = 4  # ONNX Runtime's log level: failures are raised, the log would say them twice


class OrtEngine(Engine):
    runtime: ClassVar[str] = RUNTIME
    concurrent: ClassVar[bool] = CONCURRENT

    def __init__(self, session: Any, spec: Spec, *, device: str, delivered: Precision) -> None:  # noqa: ANN401
        super().__init__(spec, device=device, delivered=delivered)
        self._session = session
        self.alone = session.get_inputs()[0].shape[0] == 1

    def _submit(self, batch: Images) -> ClassMaps:
        try:
            found = self._run(batch)
        except Exception as error:  # ONNX Runtime raises a dozen unrelated kinds
            reason = str(error).splitlines()[0]
            raise InvalidFileError(
                f"ONNX Runtime failed on a batch of {len(batch)}: {reason}",
                "Give a smaller batch or fewer threads, or export the graph again.",
            ) from error
        return found if found.dtype == np.uint8 else found.argmax(axis=1).astype(np.uint8)  # a graph of logits

    def _run(self, batch: Images) -> "NDArray[Any]":
        found: NDArray[Any] = self._session.run(None, {"images": batch})[0]
        return found

    def _release(self) -> None:
        del self._session


class WatchingOrtEngine(OrtEngine):
    """Looks at every output of floating point, for proofs: `finite` says whether all were, in the last call."""

    concurrent: ClassVar[bool] = False

    def _run(self, batch: Images) -> "NDArray[Any]":
        outputs: list[NDArray[Any]] = self._session.run(None, {"images": batch})
        floats = (output for output in outputs if output.dtype.kind == "f")
        self.finite = all(bool(np.isfinite(output).all()) for output in floats)
        return outputs[0]


class BoundOrtEngine(OrtEngine):
    """Input and output bound to memory on the device, taken once for each batch size: a GPU copies, and no more.

    One batch at a time.
    """

    concurrent: ClassVar[bool] = False

    def __init__(self, session: Any, spec: Spec, *, device: str, delivered: Precision) -> None:  # noqa: ANN401
        super().__init__(session, spec, device=device, delivered=delivered)
        self._bound: dict[int, tuple[Any, Any]] = {}
        self._turn = threading.Lock()

    def _run(self, batch: Images) -> "NDArray[Any]":
        with self._turn:
            if len(batch) not in self._bound:
                self._bound[len(batch)] = self._bind(batch)
            images, binding = self._bound[len(batch)]
            images.update_inplace(batch)
            self._session.run_with_iobinding(binding)
            found: NDArray[Any] = binding.get_outputs()[0].numpy()
            return found

    def _bind(self, batch: Images) -> tuple[Any, Any]:
        images = import_runtime().OrtValue.ortvalue_from_numpy(batch, self.device, 0)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("images", images)
        binding.bind_output(self.spec.output, self.device)
        return images, binding

    def _release(self) -> None:
        self._bound.clear()
        super()._release()


def open(  # noqa: A001 - the name every engine module has
    artifact: Artifact,
    *,
    device: str,
    options: RunOptions = RUN,
    optimised: bool = True,
    graph: bytes | None = None,
    watching: bool = False,
) -> OrtEngine:
    """`optimised=False` runs the graph node by node as it is written: the executor that parity judges graphs in.

    `graph` runs in the place of the artifact's file: the same network, its arithmetic spelled out. `watching`: on the
    CPU, look whether what it gives is finite.
    """
    ort = import_runtime()
    if device not in DEVICES:
        raise unknown_device(RUNTIME, device, DEVICES)
    provider, settings = PROVIDERS[device]
    if provider not in ort.get_available_providers():
        raise _no_cuda(f"this build of ONNX Runtime knows {', '.join(ort.get_available_providers())}")
    if device == "cuda":
        ort.preload_dlls()
    if graph is None:
        external_data.require_contained(artifact.path)
    try:
        session = ort.InferenceSession(
            graph or str(artifact.path),
            _settings(ort, options, optimised=optimised),
            providers=[(provider, settings)],
            disabled_optimizers=None if artifact.precision is Precision.INT8 else WRONG_RULES,
        )
    except Exception as error:  # ONNX Runtime raises a dozen unrelated kinds
        reason = str(error).splitlines()[0]
        raise InvalidFileError(
            f"ONNX Runtime cannot open {artifact.path}: {reason}",
            f"Export it again: segdeploy export --model {artifact.spec.name}",
        ) from error
    # ONNX Runtime lists CUDA even where it cannot load it, and falls back without a word: ask the session.
    if session.get_providers()[0] != provider:
        raise _no_cuda(f"the session runs on {session.get_providers()[0]}")
    if session.get_modelmeta().custom_metadata_map.get(SPEC_KEY) != artifact.spec.to_json():
        raise InvalidFileError(
            f"{artifact.path} carries another Spec than its manifest.",
            f"Export it again: segdeploy export --model {artifact.spec.name}",
        )
    delivered = on_cpu(artifact.precision) if device == "cpu" else artifact.precision
    engine = BoundOrtEngine if device == "cuda" else WatchingOrtEngine if watching else OrtEngine
    return engine(session, artifact.spec, device=device, delivered=delivered)


def low_precision_layers(artifact: Artifact, *, device: str) -> dict[str, Precision]:
    """The layers that are really computed in low precision, read from the graph as the runtime optimised it."""
    import onnx

    ort = import_runtime()
    provider, options = PROVIDERS[device]
    with tempfile.TemporaryDirectory() as folder:
        settings = _settings(ort, RUN, optimised=True)
        settings.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        ort.InferenceSession(str(artifact.path), settings, providers=[(provider, options)])
        graph = onnx.load(settings.optimized_model_filepath).graph
    halves = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16}
    found: dict[str, Precision] = {}
    for node in graph.node:
        name = re.sub(r"_token_\d+$", "", node.name)
        if node.op_type in INTEGER_LAYERS:
            found[name] = Precision.INT8
        elif re.search("Conv|MatMul|Gemm", node.op_type) and halves.intersection(node.input):
            found[name] = Precision.FP16
    return found


def tensors(graph: bytes, batch: Images, *, device: str, optimised: bool = True) -> "dict[str, NDArray[Any]]":
    """Every output of a graph, by name: `parity --bisect` runs copies that also give the tensors around each layer."""
    ort = import_runtime()
    settings = _settings(ort, RUN, optimised=optimised)
    session = ort.InferenceSession(graph, settings, providers=[PROVIDERS[device]], disabled_optimizers=WRONG_RULES)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": batch}), strict=True))


@extras.named_where_missing()
def layer_ms(
    artifact: Artifact, *, device: str, images: Images, runs: int, options: RunOptions = RUN
) -> list[NodeTime] | None:
    """The time of each node, from the runtime's own profile; None on CUDA, where it times launches."""
    if device != "cpu":
        return None
    import onnx

    ort = import_runtime()
    settings = _settings(ort, options, optimised=True)
    settings.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        settings.profile_file_prefix = str(Path(folder) / "profile")
        settings.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        session = ort.InferenceSession(str(artifact.path), settings, providers=[PROVIDERS["cpu"]])
        for _ in range(WARMUP + runs):
            session.run(None, {"images": images})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        graph = onnx.load(settings.optimized_model_filepath).graph
    ms = _kernel_ms(events, runs)
    makers = {output: node.name for node in graph.node for output in node.output}
    return [
        NodeTime(
            name=node.name,
            kind=node.op_type,
            ms=ms[node.name],
            names=(ADDED.sub("", node.name),),
            reads=tuple(makers[source] for source in node.input if source in makers),
        )
        for node in graph.node
    ]


def _kernel_ms(events: list[dict[str, Any]], runs: int) -> defaultdict[str, float]:
    """Mean milliseconds of a call by node, over the last `runs` calls of a profile."""
    warm = sorted(event["ts"] for event in events if event["name"] == "model_run")[-runs]
    found: defaultdict[str, float] = defaultdict(float)
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time") and event["ts"] >= warm:
            found[event["name"].removesuffix("_kernel_time")] += event["dur"] / 1000 / runs
    return found


def import_runtime() -> ModuleType:
    try:
        import onnxruntime

        onnxruntime.InferenceSession  # noqa: B018 - after a clash of its two packages the module is empty
    except (ImportError, AttributeError) as error:
        if found := installed(PACKAGES):
            raise MissingRuntimeError(
                f"{' and '.join(found)} {'is' if len(found) == 1 else 'are'} installed, but broken: {error}.",
                f"Repair: pip uninstall -y {' '.join(PACKAGES)}; pip install {found[-1]}",
            ) from error
        raise extras.absent("onnxruntime") from error
    runtime: ModuleType = onnxruntime
    return runtime


def devices() -> list[str]:
    """What the installed build was made for and this machine has; whether CUDA really loads, only a session tells."""
    available = import_runtime().get_available_providers()
    return [device for device in DEVICES if PROVIDERS[device][0] in available and (device == "cpu" or _cuda.has_gpu())]


def _settings(ort: Any, options: RunOptions, *, optimised: bool) -> Any:  # noqa: ANN401 - the module is lazy
    settings = ort.SessionOptions()
    settings.log_severity_level = FATAL
    settings.intra_op_num_threads = options.threads or cores.usable()
    if options.hint == "throughput":  # a spinning thread burns the core that decodes the next image
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    level = ort.GraphOptimizationLevel
    settings.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    return settings


def _no_cuda(reason: str) -> MissingRuntimeError:
    return MissingRuntimeError(
        f"ONNX Runtime cannot use CUDA here: {reason}.",
        "Use --device cpu, or: pip uninstall -y onnxruntime; pip install 'segdeploy[gpu]' (driver 580 or newer).",
    )
