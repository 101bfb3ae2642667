"""A graph becomes a plan: one strongly typed path for TensorRT 10.13 to 11 and TensorRT-RTX."""

import functools
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segdeploy import artifact
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.progress import Progress
from segdeploy.spec import Spec
from segdeploy.target import BuildOptions

Trt = Any  # tensorrt or tensorrt_rtx, and its objects: imported when they are asked for

POLL_S = 0.05
PERCENT = 100


class Log:
    """The errors that a builder logged: the last one is the reason when it fails."""

    def __init__(self, trt: Trt) -> None:
        self.errors: list[str] = []
        errors = self.errors

        class Logger(trt.ILogger):  # type: ignore[misc] # the base is known at run time
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Trt, message: str) -> None:
                if severity <= trt.ILogger.Severity.ERROR:
                    errors.append(" ".join(message.split()))

        self.logger = Logger()

    def forget(self) -> None:
        """Drop the errors of earlier calls."""
        self.errors.clear()

    def reason(self) -> str:
        return self.errors[-1] if self.errors else "it does not say why"


@functools.cache
def log_of(trt: Trt) -> Log:
    """One log for the whole process: TensorRT keeps the first logger that it is given, and ignores later ones."""
    return Log(trt)


def parse(trt: Trt, builder: Trt, log: Log, graph: Path, data: bytes) -> Trt:
    """The graph as a strongly typed network. Raise InvalidFileError, with the layer's name, where it is refused."""
    log.forget()
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse(data, str(graph)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        reasons = [f"{_layer(error)}: {error.desc()}" for error in errors]
        raise InvalidFileError(
            f"{trt.__name__} {trt.__version__} refuses {graph}: {' '.join(reasons) or log.reason()}",
            "Export it again with segdeploy export; int8 in the form signed.",
        )
    return network


def _layer(error: Trt) -> str:
    return f"{error.node_name()} ({error.node_operator()})" if error.node_name() else "the graph"


def configured(trt: Trt, builder: Trt, spec: Spec, options: BuildOptions, *, target: str | None) -> Trt:
    """How to build; `target` is the compute capability where it is not the one of this GPU."""
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector cannot say what was delivered
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 was asked, not TensorFloat-32
    if options.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb * 2**20)
    if target is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{target.replace('.', '')}"), 0)
    profile = builder.create_optimization_profile()
    image = (spec.height, spec.width, 3)
    profile.set_shape("images", (1, *image), (options.opt_batch, *image), (options.max_batch, *image))
    config.add_optimization_profile(profile)
    return config


def build(
    trt: Trt,
    builder: Trt,
    network: Trt,
    config: Trt,
    options: BuildOptions,
    *,
    cache: Path | None,
    title: str,
    progress: Progress,
) -> bytes:
    """Compile a network into a plan; `cache` is the timing cache. Ctrl-C ends it at the builder's next step."""
    if cache is not None:
        _use_timing_cache(trt, config, cache, options)
    with progress(f"Building {title}", PERCENT) as done:
        plan = _interruptible(trt, builder, network, config, done)
    if plan is None:
        reason = log_of(trt).reason()
        raise InvalidFileError(f"{trt.__name__} {trt.__version__} cannot build {title}: {reason}", _remedy(options))
    if cache is not None and not options.pinned:
        artifact.write_atomically(cache, bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def _remedy(options: BuildOptions) -> str:
    if options.pinned:
        return "The pinned timing cache lacks a measurement: build once without --pin-timing-cache."
    return "Give a smaller --max-batch or a larger --workspace, or export the graph again."


def _use_timing_cache(trt: Trt, config: Trt, path: Path, options: BuildOptions) -> None:
    """Start from what was measured before. A file that was not named and does not fit is begun anew."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        if options.pinned:
            raise InvalidRequestError(f"there is no timing cache {path}.", "Name one that a build wrote.") from error
        data = b""
    except OSError as error:
        raise InvalidFileError(f"cannot read {path}: {error.strerror}.", "Check its permissions.") from error
    taken = _take_timing_cache(config, data)
    if not taken and options.timing_cache is None:
        taken = _take_timing_cache(config, b"")
    if not taken:
        raise InvalidFileError(
            f"{path} is a timing cache of another version or another GPU.", "Give another --timing-cache, or none."
        )
    if options.pinned:
        config.set_flag(trt.BuilderFlag.ERROR_ON_TIMING_CACHE_MISS)


def _take_timing_cache(config: Trt, data: bytes) -> bool:
    cache = config.create_timing_cache(data)
    return cache is not None and bool(config.set_timing_cache(cache, ignore_mismatch=False))


def _interruptible(
    trt: Trt,
    builder: Trt,
    network: Trt,
    config: Trt,
    done: Callable[[], None],
) -> Trt:
    """The builder works in a thread of its own: this one hears Ctrl-C, and no exception passes through its C++."""
    monitor, progress = _monitor(trt, done)
    config.progress_monitor = monitor
    result: list[Any] = []
    failure: list[BaseException] = []
    ended = threading.Event()  # not Thread.join: in Python 3.11, Ctrl-C in it marks a thread as ended that still runs

    def work() -> None:
        try:
            if not progress.cancelled:
                result.append(builder.build_serialized_network(network, config))
        except BaseException as error:  # noqa: BLE001 - raised again where the command waits
            failure.append(error)
        finally:
            ended.set()

    worker = threading.Thread(target=work, daemon=True)
    try:
        worker.start()
        while not ended.wait(POLL_S):
            pass
    except KeyboardInterrupt:
        progress.cancelled = True
        if worker.ident is not None:  # else it has not begun, and will not
            ended.wait()
        raise
    if failure:
        raise failure[0]
    progress.finish()
    return result[0] if result else None


class _Progress:
    """The share of the builder's nested phases that is done, in whole percent; any of its threads may report it."""

    def __init__(self, done: Callable[[], None]) -> None:
        self.cancelled = False
        self._done = done
        self._turn = threading.Lock()
        self._told = 0
        self._phases: dict[str, list[int]] = {}  # name: steps done, steps in all; outermost first

    def start(self, name: str, steps: int) -> None:
        with self._turn:
            self._phases[name] = [0, max(1, steps)]

    def step(self, name: str) -> bool:
        with self._turn:
            if name in self._phases:
                self._phases[name][0] += 1
                self._tell(self._share())
        return not self.cancelled

    def end(self, name: str) -> None:
        with self._turn:
            self._phases.pop(name, None)

    def finish(self) -> None:
        self._tell(1.0)

    def _share(self) -> float:
        share, part = 0.0, 1.0
        for steps_done, steps in self._phases.values():
            share += part * min(1.0, steps_done / steps)
            part /= steps
        return min(1.0, share)

    def _tell(self, share: float) -> None:
        while self._told < int(PERCENT * share):
            self._told += 1
            self._done()


def _monitor(trt: Trt, done: Callable[[], None]) -> tuple[Trt, _Progress]:
    progress = _Progress(done)

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc] # the base is known at run time
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            progress.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:  # noqa: ARG002
            return progress.step(phase_name)

        def phase_finish(self, phase_name: str) -> None:
            progress.end(phase_name)

    return Monitor(), progress


def file_name(*parts: str | None) -> str:
    """The file name of a timing cache, made of everything that it is valid for."""
    return "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", part) for part in parts if part) + ".cache"
