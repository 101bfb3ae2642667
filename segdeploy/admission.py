"""Proven or not served: what is asked before a file draws masks for anybody, or before something is made from it."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

from segdeploy import claims, engines, precision, proving, with_torch, workspace
from segdeploy.artifact import Artifact
from segdeploy.certificate import Certificate
from segdeploy.engines import Engine, EngineFile, RunOptions
from segdeploy.errors import GateFailedError, InvalidFileError, SegdeployError
from segdeploy.progress import Progress, silent
from segdeploy.proving import ProofOptions

FIRST_USE_S = 30  # a proof on first use takes no longer


def opened(found: EngineFile, options: RunOptions, progress: Progress) -> Engine:
    """An engine that is proven; it is closed where it is not. Raise as `require_proven` does."""
    engine = engines.open_engine(found.file, runtime=found.runtime, device=found.device, options=options)
    try:
        require_proven(found, engine, progress=progress)
    except BaseException:
        engine.close()
        raise
    return engine


def require_proven(opened: EngineFile, engine: Engine, *, progress: Progress = silent) -> None:
    """Return where an engine is proven here; prove it where nobody has, by its kit or with PyTorch.

    Raise GateFailedError where it draws other masks, InvalidFileError where its weights are random or nothing here can
    prove it.
    """
    file = opened.file
    if file.has_random_weights:
        raise InvalidFileError(
            f"{file.path} has random weights: its masks mean nothing.",
            f"Time it with segdeploy bench; for masks, train it: segdeploy train --model {file.spec.model} --data DIR",
        )
    if file.kind == "checkpoint":
        return  # PyTorch is the reference
    proving.require_not_refuted(file, opened.runtime, engine.device)
    found = claims.covering(opened, engine.device)
    if found is None:
        found = _proven_now(opened, engine, progress)
        claims.keep_here(opened, engine.device, found)
    proving.require_passed(found, file)


def _proven_now(opened: EngineFile, engine: Engine, progress: Progress) -> Certificate:
    file = opened.file
    try:
        if (found_kit := claims.kit_of(file, workspace.graph_behind_plan(file))) is not None:
            return proving.by_kit(file, found_kit, engine, progress=progress)
        graph = with_own_limits(workspace.graph_behind(file))
        with_limits = dataclasses.replace(opened, file=graph if file.kind == "graph" else file)
        pictures = workspace.proof_images_of(graph)
        return proving.judge(graph, with_limits, pictures, progress=_no_longer_than(FIRST_USE_S, progress))
    except GateFailedError:
        raise
    except SegdeployError as error:
        raise _unproven(opened, engine, error.what) from error


def without_pytorch(opened: EngineFile, *, options: ProofOptions, progress: Progress) -> Certificate | None:
    """The certificate by the proof kit beside a file, where the reference is not here: PyTorch and the checkpoint."""
    graph = workspace.graph_behind_plan(opened.file)
    if reference_is_here(opened.file) or (found_kit := claims.kit_of(opened.file, graph)) is None:
        return None
    runtime, device = opened.runtime, opened.device
    with engines.open_engine(opened.file, runtime=runtime, device=device, options=options.run) as engine:
        return proving.by_kit(opened.file, found_kit, engine, options=options, progress=progress)


def reference_is_here(file: Artifact) -> bool:
    """Whether what a file is compared with is here: PyTorch and its checkpoint, or the file it was adopted from."""
    try:
        graph = workspace.graph_behind(file)
        if graph.origin.foreign is not None:
            of_onnx = graph.origin.foreign.kind == "ONNX"
            _ = with_torch.onnx_reference() if of_onnx else with_torch.module_reference()
            workspace.original_of(graph)
        else:
            with_torch.torch_reference()
            workspace.checkpoint_of(graph)
    except SegdeployError:
        return False
    return True


def with_own_limits(graph: Artifact) -> Artifact:
    """A graph whose manifest does not count here gets the budget that its precision has by default."""
    if graph.low_precision is None or claims.admitted(graph):
        return graph
    budget = precision.module(graph.precision).BUDGET
    return dataclasses.replace(graph, low_precision=dataclasses.replace(graph.low_precision, budget=budget))


def _no_longer_than(limit_s: float, progress: Progress) -> Progress:
    """Ends a proof of which the first images show that it would take longer."""

    @contextlib.contextmanager
    def limited(text: str, total: int) -> Iterator[Callable[[], None]]:
        started, count = time.monotonic(), 0
        with progress(text, total) as done:

            def counted() -> None:
                nonlocal count
                count += 1
                done()
                if (time.monotonic() - started) / count * total > limit_s:
                    raise InvalidFileError(f"a proof would take more than {limit_s:g} s.", "Prove it first.")

            yield counted

    return limited


def _unproven(opened: EngineFile, engine: Engine, reason: str) -> InvalidFileError:
    file = opened.file
    what = (
        f"{file.path} is not proven in {opened.runtime} on this machine's {engine.device}, and cannot be now: {reason}"
    )
    prove = f"segdeploy parity --model {file.path} --engine {opened.runtime}:{file.precision} --data DIR"
    sha256 = claims.unadmitted(file, workspace.graph_behind_plan(file))
    return InvalidFileError(what, f"Prove it: {prove}. Or, if you know where it is from: segdeploy trust {sha256}")


def proof_of_graph(graph: Artifact, *, progress: Progress) -> Artifact:
    """A graph with a proof that counts here, made where there is none: what else is made from it stands on that.

    It is proven by its kit, or on the images that it has. Raise GateFailedError where it draws other masks,
    InvalidRequestError where there are no images.
    """
    if graph.has_random_weights:
        return graph
    proving.require_not_refuted(graph)
    known = next((found for found in claims.counting(graph) if found.proves), None)
    if known is not None:
        return dataclasses.replace(graph, certificate=known)
    opened = EngineFile(graph, engines.REFERENCE, graph.precision, "cpu")
    found_kit = claims.kit_of(graph)
    if found_kit is not None:
        with contextlib.ExitStack() as stack:
            engine = None
            if graph.form in {None, engines.modules()[engines.REFERENCE].FORM}:
                engine = stack.enter_context(engines.open_engine(graph, runtime=engines.REFERENCE, device="cpu"))
            found = proving.by_kit(graph, found_kit, engine, progress=progress)
    else:
        graph = with_own_limits(graph)
        shown = workspace.proof_images_of(graph)
        found = proving.judge(graph, dataclasses.replace(opened, file=graph), shown, progress=progress)
    proven = proving.keep(graph, found)
    proving.require_passed(found, proven)
    return proven
