"""What TensorRT and TensorRT-RTX have in common; a `Flavour` holds what differs."""

import dataclasses
import importlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from segdeploy import artifact, extras, signature
from segdeploy.artifact import Artifact
from segdeploy.engines import _audit, _cuda, _plan_build
from segdeploy.engines._base import BUILD, RUN, Images, RunOptions, unknown_device
from segdeploy.engines._cuda import Cuda
from segdeploy.engines._layers import NodeTime
from segdeploy.engines._plan_build import Trt
from segdeploy.engines._plan_compile import PlanBuild, compile_plan, system
from segdeploy.engines._plan_run import PlanEngine
from segdeploy.errors import InvalidFileError, InvalidRequestError, MissingRuntimeError
from segdeploy.progress import Progress, silent
from segdeploy.target import BuildOptions, Gpu, Target

OPENS = "plan"
DEVICES = ("cuda",)
CONCURRENT = False  # two batches at once keep it busy, however many threads there are
FORM = "signed"


@dataclasses.dataclass(frozen=True, slots=True)
class Flavour:
    """One of the two: the module it is imported as, and what it can do.

    `cross`: it builds for GPUs that are not here. `has_timing_cache`: it keeps what it measured. `captures_itself`: its
    runtime launches whole networks as CUDA graphs, and again where it has compiled better kernels meanwhile.
    """

    runtime: str
    module: str
    cross: bool
    has_timing_cache: bool
    captures_itself: bool

    @extras.named_where_missing()
    def import_runtime(self) -> ModuleType:
        try:
            return importlib.import_module(self.module)
        except OSError as error:  # a binding without its library
            raise extras.broken(self.module, error) from error

    def devices(self) -> list[str]:
        """cuda, where there is a GPU that the runtime knows. Raise MissingRuntimeError where there is none."""
        trt, here = self.import_runtime(), _cuda.gpu_here().compute_capability
        if self.cross and here not in _known(trt):
            raise MissingRuntimeError(
                f"{self.module} {trt.__version__} knows no GPU of compute capability {here}.",
                f"It knows {', '.join(_known(trt))}: choose another runtime.",
            )
        return list(DEVICES)

    def target(self, options: BuildOptions = BUILD) -> Target:
        """What a build is for: the compute capability that was named, or that of this GPU.

        Raise InvalidRequestError where the options cannot be met.
        """
        self._require_sensible(options)
        trt, asked = self.import_runtime(), options.compute_capability
        wanted = Target.of(self._gpu_here()) if asked is None else Target(asked)
        capability = wanted.compute_capability
        if self.cross:
            if capability not in _known(trt):
                raise InvalidRequestError(
                    f"{self.module} {trt.__version__} builds nothing for compute capability {capability}.",
                    f"Choose one of {', '.join(_known(trt))}.",
                )
            gpu = _gpu_of(capability)
            return wanted if gpu is None else Target.of(gpu)
        here = self._gpu_here()
        if capability != here.compute_capability:
            raise InvalidRequestError(
                f"{self.runtime} builds for the GPU it runs on ({here.compute_capability}), not for {capability}.",
                "Build on such a GPU, or with trt-rtx.",
            )
        return Target.of(here)

    def _gpu_here(self) -> Gpu:
        try:
            return _cuda.gpu_here()
        except MissingRuntimeError as error:
            elsewhere = (
                "Build for a GPU that is elsewhere: segdeploy build --compute-capability 8.9, or run --engine ort:fp32"
            )
            remedy = elsewhere if self.cross else error.remedy
            raise MissingRuntimeError(error.what, remedy) from error

    def compile(
        self, graph: Artifact, folder: Path, options: BuildOptions = BUILD, *, progress: Progress = silent
    ) -> Artifact:
        """Build a plan into `folder`, signed, with the audit of its precision in the manifest."""
        trt, target = self.import_runtime(), self.target(options)
        self._require_buildable(graph)
        build = PlanBuild(self.runtime, target, options, self._timing_cache(options, target), self.cross)
        return compile_plan(trt, graph, folder, build, progress=progress)

    def _require_buildable(self, graph: Artifact) -> None:
        if graph.form not in {None, FORM}:
            raise InvalidFileError(
                f"{graph.path} is in the {graph.form} form; {self.runtime} takes {FORM}.",
                f"Make it: segdeploy export --model {graph.spec.name} --precision int8 --form {FORM}",
            )
        if graph.spec.output != "class_map":
            raise InvalidFileError(f"{graph.path} gives {graph.spec.output}.", "Build from the graph of class maps.")

    def _require_sensible(self, options: BuildOptions) -> None:
        if options.opt_batch > options.max_batch:
            raise InvalidRequestError(
                f"--opt-batch {options.opt_batch} is more than --max-batch {options.max_batch}.", "Give a smaller one."
            )
        if options.timing_cache is not None and not self.has_timing_cache:
            raise InvalidRequestError(f"{self.runtime} keeps no timing cache.", "Leave --timing-cache out.")
        if options.pinned and options.timing_cache is None:
            raise InvalidRequestError("--pin-timing-cache pins a file.", "Name it with --timing-cache FILE.")

    def _timing_cache(self, options: BuildOptions, target: Target) -> Path | None:
        """The file that was named, else the one of this version, GPU and driver."""
        if options.timing_cache is not None or not self.has_timing_cache or target.gpu is None:
            return options.timing_cache
        facts = (target.gpu, target.compute_capability, target.driver, target.cuda)
        name = _plan_build.file_name(self.runtime, self.import_runtime().__version__, *facts)
        return artifact.cache_folder() / "timing" / name

    def _contexts(self, trt: Trt, engine: Trt, cuda: Cuda, *, cuda_graphs: bool) -> Callable[[], Trt]:
        """What makes execution contexts. Where there are several they share their memory: one runs at a time."""
        if self.captures_itself:
            config = engine.create_runtime_config()
            strategy = trt.CudaGraphStrategy
            config.cuda_graph_strategy = strategy.WHOLE_GRAPH_CAPTURE if cuda_graphs else strategy.DISABLED
            return lambda: engine.create_execution_context(config)
        size = max(1, engine.device_memory_size_v2)
        address = cuda.allocate(size)

        def new_context() -> Trt:
            context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
            if context is not None:
                context.set_device_memory(address, size)
            return context

        return new_context

    def open(self, compiled: Artifact, *, device: str, options: RunOptions = RUN) -> PlanEngine:
        """Open a plan, once its manifest, its bytes, this runtime and this GPU are what they must be."""
        if device not in DEVICES:
            raise unknown_device(self.runtime, device, DEVICES)
        plan, data = signature.read(compiled.path)
        trt = self.import_runtime()
        facts = signature.facts_of(plan)
        _require_made_for(plan, "runtime", facts.runtime, self.runtime)
        _require_made_for(plan, "runtime version", facts.runtime_version, trt.__version__)
        _require_made_for(plan, "system", facts.system, system())
        cuda = _cuda.connect(options.cuda)
        try:
            engine = _deserialized(trt, plan, data, cuda)
            with cuda.active():
                new_context = self._contexts(trt, engine, cuda, cuda_graphs=options.cuda_graphs)
            return PlanEngine(
                new_context,
                cuda,
                plan.spec,
                runtime=self.runtime,
                max_batch=facts.options.max_batch,
                delivered=facts.executed.delivered,
                captures=options.cuda_graphs and not self.captures_itself,
            )
        except BaseException:
            cuda.close()
            raise

    def layer_ms(
        self, compiled: Artifact, *, device: str, images: Images, runs: int, options: RunOptions = RUN
    ) -> list[NodeTime]:
        """The time of each layer, by the runtime's profiler; the inspector says what is fused."""
        trt = self.import_runtime()
        ms: defaultdict[str, float] = defaultdict(float)
        apart = dataclasses.replace(options, cuda_graphs=False)
        with self.open(compiled, device=device, options=apart) as engine:
            context = engine.profiled(images, _profiler(trt, ms), runs=runs)
            inspector = context.engine.create_engine_inspector()
            inspector.execution_context = context
            made_of = _audit.layers(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
            del inspector, context  # before the engine they belong to
        found = {name: made_of.get(name) or ("Layer", tuple(name.split(" + "))) for name in ms}
        return [NodeTime(name, kind, ms[name] / runs, names) for name, (kind, names) in found.items()]


def _profiler(trt: Trt, ms: defaultdict[str, float]) -> Trt:
    """What TensorRT tells of each layer and call, summed into `ms`."""

    class Profiler(trt.IProfiler):  # type: ignore[misc] # the base is known at run time
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms_of_call: float) -> None:
            ms[layer_name] += ms_of_call

    return Profiler()


def _deserialized(trt: Trt, plan: Artifact, data: bytes, cuda: Cuda) -> Trt:
    with cuda.active():
        made_for = signature.facts_of(plan).target.compute_capability
        _require_made_for(plan, "compute capability", made_for, cuda.gpu().compute_capability)
        log = _plan_build.log_of(trt)
        engine = trt.Runtime(log.logger).deserialize_cuda_engine(data)
    if engine is None:
        raise InvalidFileError(
            f"{signature.facts_of(plan).runtime} cannot load {plan.path}: {log.reason()}", _rebuild(plan)
        )
    return engine


def _known(trt: ModuleType) -> list[str]:
    """The compute capabilities that TensorRT-RTX names."""
    names = [name.removeprefix("SM") for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    return sorted((f"{digits[:-1]}.{digits[-1]}" for digits in names), key=float)


def _gpu_of(capability: str) -> Gpu | None:
    """This machine's GPU, where a plan for that compute capability can be loaded on it."""
    try:
        gpu = _cuda.gpu_here()
    except MissingRuntimeError:
        return None
    return gpu if gpu.compute_capability == capability else None


def _require_made_for(plan: Artifact, fact: str, made_for: str, here: str) -> None:
    if made_for != here:
        raise InvalidFileError(f"{plan.path} was built for {fact} {made_for}; here it is {here}.", _rebuild(plan))


def _rebuild(plan: Artifact) -> str:
    engine = f"{signature.facts_of(plan).runtime}:{plan.precision}"
    return f"Build it here: segdeploy build --model {plan.spec.name} --engine {engine}"
