"""Plans that TensorRT-RTX really compiles, which needs no GPU; one is faked where the GPU decides."""

import contextlib
import dataclasses
import hashlib
import json
import signal
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tensorrt_rtx
import torch
from conftest import SPEC
from fake_gpu import FakeCuda, FakeNetwork, expected

from segdeploy import artifact, models, signature
from segdeploy.artifact import Artifact
from segdeploy.engines import BuildOptions, RunOptions, _cuda, _plan_build, trt_rtx
from segdeploy.engines._tensorrt import Flavour
from segdeploy.errors import GateFailedError, InvalidFileError, InvalidRequestError, MissingRuntimeError
from segdeploy.graphs import to_onnx as export
from segdeploy.graphs.graph import Graph, layer_work
from segdeploy.low_precision import Budget, LowPrecision
from segdeploy.origin import WeightsOrigin
from segdeploy.precision import fp16, int8
from segdeploy.signature import facts_of
from segdeploy.spec import Precision
from segdeploy.target import PlanFacts, Target

WEIGHTS = WeightsOrigin(kind="random", path="none", sha256="0" * 64)
ADA = BuildOptions(compute_capability="8.9")
# It behaves as TensorRT proper does, as far as this can be seen without a GPU.
HERE = Flavour("trt", "tensorrt_rtx", cross=False, has_timing_cache=True, captures_itself=False)
# TensorRT-RTX takes and gives timing caches, and says each time that they hold nothing.
NO_CACHE = pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key and the timing caches are the test's own, and no GPU is found."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_cuda, "connect", no_gpu)


def no_gpu(_name: str | None = None) -> FakeCuda:
    raise MissingRuntimeError("there is none.", "Buy one.")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The small U-Net by precision, and its unsigned form, as `segdeploy export` would describe them."""
    folder = tmp_path_factory.mktemp("graphs")
    torch.manual_seed(0)
    network: Any = models.build("unet", 2, **SPEC.variant).eval()
    wide = export.to_onnx(network, SPEC, folder / "unet.fp32.onnx", weights=WEIGHTS)
    model = onnx.load(wide.path)
    ranges = dict.fromkeys(int8.tensors(model), (-6.0, 6.0))
    low = {
        "fp16": fp16.to_half(model),
        "int8": int8.convert(model, ranges, form="signed"),
        "unsigned": int8.convert(model, ranges, form="unsigned"),
    }
    return {"fp32": wide, **{kind: described(wide, kind, made) for kind, made in low.items()}}


def described(wide: Artifact, kind: str, model: onnx.ModelProto) -> Artifact:
    path = wide.path.with_name(f"unet.{kind}.onnx")
    data = model.SerializeToString()
    path.write_bytes(data)
    form = {"fp16": None, "int8": "signed"}.get(kind, kind)
    precision = Precision.FP16 if kind == "fp16" else Precision.INT8
    facts = LowPrecision(
        budget=Budget(0.98, 0.5), in_float={}, low_share=1.0, asked={precision.value: 1.0}, executed={}
    )
    sha256 = hashlib.sha256(data).hexdigest()
    return dataclasses.replace(wide, path=path, precision=precision, sha256=sha256, low_precision=facts, form=form)


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


class Watching:
    """A progress bar that is looked at: how many steps there are, and what happens at one of them."""

    def __init__(self, at: int = -1, act: Callable[[], None] = lambda: None) -> None:
        self.total, self.steps = 0, 0
        self._at, self._act = at, act

    @contextlib.contextmanager
    def __call__(self, _title: str, total: int) -> Iterator[Callable[[], None]]:
        self.total = total
        yield self.step

    def step(self) -> None:
        self.steps += 1
        if self.steps == self._at:
            self._act()


class Recording:
    """A builder whose configurations and profiles can be looked at afterwards."""

    def __init__(self, builder: Any) -> None:  # noqa: ANN401 - TensorRT's
        self._builder = builder
        self.made: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - TensorRT's
        found = getattr(self._builder, name)
        if not name.startswith("create_"):
            return found
        return lambda *arguments: self.made.setdefault(name, found(*arguments))


def configured(graph: Artifact, options: BuildOptions, *, target: str | None = "8.9") -> dict[str, Any]:
    """What the builder was told for a graph."""
    log = _plan_build.log_of(tensorrt_rtx)
    builder = Recording(tensorrt_rtx.Builder(log.logger))
    network = _plan_build.parse(tensorrt_rtx, builder, log, graph.path, graph.path.read_bytes())
    config = _plan_build.configured(tensorrt_rtx, builder, graph.spec, options, target=target)
    plan = _plan_build.build(
        tensorrt_rtx, builder, network, config, options, cache=None, title="unet", progress=Watching()
    )
    assert len(plan) > 1000
    return builder.made


def test_the_builder_is_told_what_was_asked(graphs: dict[str, Artifact]) -> None:
    """TensorFloat-32 is off, for fp32 was asked; details are kept, for the engine is inspected."""
    made = configured(graphs["fp32"], BuildOptions(max_batch=6, opt_batch=3, workspace_mb=512), target="12.0")
    shapes = made["create_optimization_profile"].get_shape("images")
    assert [tuple(shape) for shape in shapes] == [(count, 64, 64, 3) for count in (1, 3, 6)]
    config = made["create_builder_config"]
    assert config.get_memory_pool_limit(tensorrt_rtx.MemoryPoolType.WORKSPACE) == 512 * 2**20
    assert not config.get_flag(tensorrt_rtx.BuilderFlag.TF32)
    assert config.profiling_verbosity == tensorrt_rtx.ProfilingVerbosity.DETAILED
    assert config.num_compute_capabilities == 1
    assert config.get_compute_capability(0) == tensorrt_rtx.ComputeCapability.SM120


def test_a_network_that_does_not_fit_its_workspace_is_an_error_with_its_option(graphs: dict[str, Artifact]) -> None:
    with pytest.raises(InvalidFileError, match="workspace") as error:
        configured(graphs["fp32"], BuildOptions(workspace_mb=1))
    assert "--workspace" in error.value.remedy


@pytest.mark.parametrize(
    "options,named",
    [
        (BuildOptions(max_batch=2, opt_batch=3), "--opt-batch 3 is more than --max-batch 2"),
        (BuildOptions(compute_capability="9.9"), "nothing for compute capability 9.9"),
        (BuildOptions(compute_capability="sm_89"), "'sm_89' is no compute capability"),
        (BuildOptions(compute_capability="8.9\n"), "is no compute capability"),
        (BuildOptions(timing_cache=Path("t.cache"), compute_capability="8.9"), "trt-rtx keeps no timing cache"),
        (BuildOptions(pinned=True, compute_capability="8.9"), "--pin-timing-cache pins a file"),
    ],
    ids=str,
)
def test_options_that_cannot_hold_are_refused(
    graphs: dict[str, Artifact], options: BuildOptions, named: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequestError, match=named):
        trt_rtx.compile(graphs["fp32"], tmp_path / "engines", options)
    assert not written(tmp_path)


def test_an_unknown_compute_capability_is_refused_with_the_known_ones(
    graphs: dict[str, Artifact], tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequestError) as error:
        trt_rtx.compile(graphs["fp32"], tmp_path, BuildOptions(compute_capability="9.0"))
    assert "7.5, 8.0, 8.6, 8.9, 12.0" in error.value.remedy


def test_a_layer_that_the_runtime_refuses_is_named(graphs: dict[str, Artifact], tmp_path: Path) -> None:
    """By our name, which says in which module of the network it is."""
    model = onnx.load(graphs["fp32"].path)
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.op_type = "Rellu"
    path = tmp_path / "unet.fp32.onnx"
    path.write_bytes(model.SerializeToString())
    strange = dataclasses.replace(graphs["fp32"], path=path, sha256=artifact.sha256(path))
    with pytest.raises(InvalidFileError, match=rf"tensorrt_rtx .* refuses .*{node.name} \(Rellu\)"):
        trt_rtx.compile(strange, tmp_path / "engines", ADA)
    assert not (tmp_path / "engines").exists()


def test_the_unsigned_form_is_refused_by_its_form_and_by_the_parser(
    graphs: dict[str, Artifact], tmp_path: Path
) -> None:
    with pytest.raises(InvalidFileError, match="trt-rtx takes signed") as error:
        trt_rtx.compile(graphs["unsigned"], tmp_path, ADA)
    assert "--form signed" in error.value.remedy
    with pytest.raises(InvalidFileError, match=r"QuantizeLinear \(QuantizeLinear\): .*zero point") as error:
        trt_rtx.compile(dataclasses.replace(graphs["unsigned"], form="signed"), tmp_path, ADA)
    assert "signed" in error.value.remedy


def test_a_graph_that_changed_is_refused(graphs: dict[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(InvalidFileError, match="changed while it was read"):
        trt_rtx.compile(dataclasses.replace(graphs["fp32"], sha256="0" * 64), tmp_path / "engines", ADA)


def test_progress_is_told_in_a_hundred_steps(graphs: dict[str, Artifact], tmp_path: Path) -> None:
    watching = Watching()
    trt_rtx.compile(graphs["fp32"], tmp_path, ADA, progress=watching)
    assert (watching.total, watching.steps) == (100, 100)


def test_ctrl_c_ends_a_build_and_leaves_no_file(graphs: dict[str, Artifact], tmp_path: Path) -> None:
    """What was built before stays as it was."""
    folder = tmp_path / "engines"
    before = trt_rtx.compile(graphs["fp32"], folder, ADA)
    files = {name: (folder / name).read_bytes() for name in written(folder)}

    def interrupt() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(0.3)  # the main thread has heard it before the builder asks whether to go on

    watching = Watching(at=10, act=interrupt)
    with pytest.raises(KeyboardInterrupt):
        trt_rtx.compile(graphs["fp32"], folder, dataclasses.replace(ADA, max_batch=3), progress=watching)
    assert watching.steps < 100
    assert {name: (folder / name).read_bytes() for name in written(folder)} == files
    assert facts_of(signature.read(before.path)[0]).options.max_batch == 8


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_plan_says_what_was_asked_typed_and_delivered(
    graphs: dict[str, Artifact], precision: str, tmp_path: Path
) -> None:
    """Without a GPU nobody can tell what an engine of low precision computes in."""
    plan = trt_rtx.compile(graphs[precision], tmp_path / "engines", ADA)
    found, data = signature.read(plan.path)
    assert found.path == tmp_path / "engines" / f"unet.trt-rtx.{precision}.cc89.plan"
    assert found == plan
    assert hashlib.sha256(data).hexdigest() == plan.sha256
    facts = facts_of(found)
    assert facts.asked == facts.typed.work == {precision: 1.0}
    assert facts.typed.tensors["uint8"] >= 1
    assert facts.executed.delivered == ("fp32" if precision == "fp32" else None)
    assert (facts.executed.reason is None) == (precision == "fp32")
    assert facts.target == Target("8.9", gpu=None, driver=None)
    source = found.origin.graph
    assert source is not None
    assert source.sha256 == graphs[precision].sha256
    assert (plan.path.parent / source.path).resolve() == graphs[precision].path.resolve()


def test_a_graph_that_is_wider_than_it_says_is_not_built(graphs: dict[str, Artifact], tmp_path: Path) -> None:
    wide = dataclasses.replace(graphs["fp32"], precision=Precision.FP16, low_precision=graphs["fp16"].low_precision)
    with pytest.raises(GateFailedError, match=r"asks for 100.0% .* has 0.0%") as error:
        trt_rtx.compile(wide, tmp_path / "engines", ADA)
    assert error.value.exit_code == 4
    assert not (tmp_path / "engines").exists()


def with_gpu(monkeypatch: pytest.MonkeyPatch, graph: Artifact, kind: str, capability: str = "8.9") -> None:
    """A GPU whose inspector says of every convolution that it reads `kind`."""
    layers = [
        {"Name": name, "Inputs": [{"Name": "x", "Format/Datatype": f"Row major linear {kind}"}]}
        for name in layer_work(Graph(onnx.load(graph.path)))
    ]

    class Runtime:
        def __init__(self, _logger: object) -> None: ...

        def deserialize_cuda_engine(self, plan: bytes) -> FakeNetwork | None:
            return FakeNetwork(FakeCuda(), information=json.dumps({"Layers": layers})) if plan else None

    monkeypatch.setattr(tensorrt_rtx, "Runtime", Runtime)
    monkeypatch.setattr(_cuda, "connect", lambda _name=None: FakeCuda(capability=capability))


@NO_CACHE
@pytest.mark.parametrize("flavour", [trt_rtx._flavour, HERE], ids=["trt-rtx", "trt"])  # noqa: SLF001 - what it is
def test_a_plan_that_would_compute_wider_is_not_written(
    graphs: dict[str, Artifact], flavour: Flavour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier one is left alone; the failed proof is exit code 4."""
    folder = tmp_path / "engines"
    with_gpu(monkeypatch, graphs["fp16"], "FP16 format")
    plan = flavour.compile(graphs["fp16"], folder)
    facts = facts_of(plan)
    assert (facts.executed.delivered, facts.executed.delivered_share) == ("fp16", 1.0)
    assert facts.target.gpu == "Fake RTX 1"
    files = {name: (folder / name).read_bytes() for name in written(folder)}
    with_gpu(monkeypatch, graphs["fp16"], "FP32")
    with pytest.raises(GateFailedError, match=r"would do 0.0% of its fp16 work in fp16; wider: \w") as error:
        flavour.compile(graphs["fp16"], folder)
    assert error.value.exit_code == 4
    assert {name: (folder / name).read_bytes() for name in written(folder)} == files
    with pytest.raises(GateFailedError):
        flavour.compile(graphs["fp16"], tmp_path / "others")
    assert not (tmp_path / "others").exists()


@NO_CACHE
def test_tensorrt_builds_for_the_gpu_that_is_here(
    graphs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingRuntimeError):
        HERE.compile(graphs["fp32"], tmp_path)
    with_gpu(monkeypatch, graphs["fp32"], "FP32")
    with pytest.raises(InvalidRequestError, match=r"runs on \(8.9\), not for 8.6") as error:
        HERE.compile(graphs["fp32"], tmp_path, BuildOptions(compute_capability="8.6"))
    assert "trt-rtx" in error.value.remedy
    assert HERE.compile(graphs["fp32"], tmp_path, ADA).path.name == "unet.trt.fp32.cc89.plan"


def test_a_plan_for_another_gpu_is_built_without_inspecting_it(
    graphs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpu(monkeypatch, graphs["fp16"], "FP32", capability="12.0")
    facts = facts_of(trt_rtx.compile(graphs["fp16"], tmp_path, ADA))
    assert facts.executed.delivered is facts.target.gpu is None


def timed(graph: Artifact, folder: Path, cache: Path | None = None, *, pinned: bool = False) -> PlanFacts:
    return facts_of(HERE.compile(graph, folder / "engines", BuildOptions(timing_cache=cache, pinned=pinned)))


@pytest.fixture
def gpu(graphs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """A GPU of compute capability 8.9, and a graph for it."""
    with_gpu(monkeypatch, graphs["fp16"], "FP16 format")
    return graphs["fp16"]


@NO_CACHE
def test_the_timing_cache_is_kept_for_this_version_gpu_and_driver(gpu: Artifact, tmp_path: Path) -> None:
    told = timed(gpu, tmp_path)
    kept = tmp_path / "cache" / "segdeploy" / "timing" / "trt-1.7.1.116-Fake_RTX_1-8.9-590.1-13.0.cache"
    assert kept.name.startswith(f"trt-{tensorrt_rtx.__version__}-")
    assert told.options.timing_cache is None, "nobody named it: another version must not be held to it"
    assert told.timing_cache_sha256 == artifact.sha256(kept)
    kept.write_bytes(b"of another version")
    timed(gpu, tmp_path)


@NO_CACHE
def test_a_timing_cache_that_is_named_is_written_where_it_was_named(gpu: Artifact, tmp_path: Path) -> None:
    named = tmp_path / "deep" / "own.cache"
    timed(gpu, tmp_path, named)
    assert named.stat().st_size > 0
    assert not (tmp_path / "cache").exists()


@NO_CACHE
def test_a_pinned_timing_cache_is_never_written(gpu: Artifact, tmp_path: Path) -> None:
    named = tmp_path / "own.cache"
    timed(gpu, tmp_path, named)
    before = named.read_bytes(), named.stat().st_mtime_ns, named.stat().st_ino
    told = timed(gpu, tmp_path, named, pinned=True)
    assert (named.read_bytes(), named.stat().st_mtime_ns, named.stat().st_ino) == before
    assert told.options.pinned
    assert told.timing_cache_sha256 == hashlib.sha256(before[0]).hexdigest()


@NO_CACHE
def test_a_pinned_timing_cache_that_is_not_there_is_refused(gpu: Artifact, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"there is no timing cache .*own\.cache"):
        timed(gpu, tmp_path, tmp_path / "own.cache", pinned=True)
    with pytest.raises(InvalidRequestError, match="pins a file"):
        timed(gpu, tmp_path, pinned=True)
    assert written(tmp_path / "engines") == []


def test_a_timing_cache_that_the_builder_refuses_is_refused(tmp_path: Path) -> None:
    """TensorRT-RTX takes anything; TensorRT does not."""
    refusing = types.SimpleNamespace(
        create_timing_cache=lambda _data: object(), set_timing_cache=lambda _cache, ignore_mismatch: ignore_mismatch
    )
    named = tmp_path / "own.cache"
    named.write_bytes(b"of another version")
    with pytest.raises(InvalidFileError, match="another version or another GPU") as error:
        _plan_build._use_timing_cache(  # noqa: SLF001 - what TensorRT-RTX never says
            tensorrt_rtx, refusing, named, BuildOptions(timing_cache=named)
        )
    assert "--timing-cache" in error.value.remedy
    assert named.read_bytes() == b"of another version"


def test_a_timing_cache_that_nobody_named_is_begun_anew_where_it_does_not_fit(tmp_path: Path) -> None:
    """A damaged file in a cache folder must not keep anybody from building."""
    offered: list[bytes] = []

    def taken(cache: bytes, *, ignore_mismatch: bool) -> bool:
        offered.append(cache)
        return not ignore_mismatch and cache == b""

    particular = types.SimpleNamespace(create_timing_cache=lambda data: data, set_timing_cache=taken)
    kept = tmp_path / "own.cache"
    kept.write_bytes(b"of another version")
    _plan_build._use_timing_cache(tensorrt_rtx, particular, kept, BuildOptions())  # noqa: SLF001 - as above
    assert offered == [b"of another version", b""]


@NO_CACHE
def test_a_plan_is_opened_where_it_was_built_for(
    gpu: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = HERE.compile(gpu, tmp_path)
    batch = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    cuda = loading(monkeypatch)
    with HERE.open(plan, device="cuda") as engine:
        assert (engine.runtime, engine.device, engine.delivered, engine.max_batch) == ("trt", "cuda", "fp16", 8)
        np.testing.assert_array_equal(engine.classify(batch), expected(batch))
    assert cuda.closed
    with pytest.raises(InvalidRequestError, match="no device 'cpu'"):
        HERE.open(plan, device="cpu")


@NO_CACHE
@pytest.mark.parametrize("graphs_wanted", [True, False])
def test_tensorrt_rtx_captures_by_itself_and_tensorrt_shares_one_memory(
    gpu: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, graphs_wanted: bool
) -> None:
    rtx = trt_rtx._flavour  # noqa: SLF001 - what it is
    batch = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    for flavour, plan in [(flavour, flavour.compile(gpu, tmp_path)) for flavour in (HERE, rtx)]:
        network = FakeNetwork(FakeCuda())
        cuda = loading(monkeypatch, network=network)
        with flavour.open(plan, device="cuda", options=RunOptions(cuda_graphs=graphs_wanted)) as engine:
            for _ in range(8):
                np.testing.assert_array_equal(engine.classify(batch), expected(batch))
        strategy = tensorrt_rtx.CudaGraphStrategy
        if flavour is rtx:
            wanted = strategy.WHOLE_GRAPH_CAPTURE if graphs_wanted else strategy.DISABLED
            assert [context.how.cuda_graph_strategy for context in network.contexts] == [wanted]  # type: ignore[attr-defined]
            assert cuda.count["capture"] == 0
        else:
            assert len({context.memory for context in network.contexts}) == 1
            assert len(network.contexts) == (3 if graphs_wanted else 1)


@NO_CACHE
@pytest.mark.parametrize("wrong", ["capability", "version", "bytes", "context"])
def test_a_plan_that_cannot_run_here_is_refused_and_leaves_no_memory(
    gpu: Artifact, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = HERE.compile(gpu, tmp_path)
    cuda = loading(monkeypatch, capability="12.0" if wrong == "capability" else "8.9", loads=wrong != "bytes")
    said = {"bytes": "cannot load", "context": "cannot run"}.get(wrong, "was built for")
    if wrong == "version":
        monkeypatch.setattr(tensorrt_rtx, "__version__", "99.0")
    if wrong == "context":
        monkeypatch.setattr(FakeNetwork, "create_execution_context", lambda *_: None)
    with pytest.raises(InvalidFileError, match=said):
        HERE.open(plan, device="cuda")
    assert cuda.closed == (wrong != "version")  # which is seen before the GPU is asked for
    assert not cuda.alive


def loading(
    monkeypatch: pytest.MonkeyPatch,
    capability: str = "8.9",
    *,
    loads: bool = True,
    network: FakeNetwork | None = None,
) -> FakeCuda:
    """A GPU that runs what it loads."""
    cuda = FakeCuda(capability=capability)
    network = network or FakeNetwork(cuda)
    network.cuda = cuda
    monkeypatch.setattr(_cuda, "connect", lambda _name=None: cuda)
    runtime = types.SimpleNamespace(deserialize_cuda_engine=lambda _plan: network if loads else None)
    monkeypatch.setattr(tensorrt_rtx, "Runtime", lambda _logger: runtime)
    return cuda


def test_ctrl_c_waits_for_the_builder(graphs: dict[str, Artifact], tmp_path: Path) -> None:
    """In Python 3.11, Ctrl-C inside `Thread.join` marks a thread as ended that still runs."""
    before, after = threading.active_count(), []

    def interrupt() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(0.3)  # the main thread has heard it before the builder asks whether to go on
        after.append("the builder went on")

    with pytest.raises(KeyboardInterrupt):
        trt_rtx.compile(graphs["fp32"], tmp_path / "engines", ADA, progress=Watching(at=10, act=interrupt))
    assert after
    assert threading.active_count() == before


def test_a_gpu_that_tensorrt_rtx_does_not_know_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data-centre GPUs such as compute capability 9.0 are none of its own: another runtime is chosen there."""
    monkeypatch.setattr(_cuda, "connect", lambda _name=None: FakeCuda(capability="9.0"))
    with pytest.raises(MissingRuntimeError, match=r"knows no GPU of compute capability 9\.0"):
        trt_rtx.devices()
    with pytest.raises(InvalidRequestError, match=r"builds nothing for compute capability 9\.0"):
        trt_rtx.target()
