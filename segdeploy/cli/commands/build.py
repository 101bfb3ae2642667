"""Compile a plan for an NVIDIA GPU, and sign it."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from segdeploy.cli import bars, certificates, options, rendering

if TYPE_CHECKING:
    from segdeploy.artifact import Artifact
    from segdeploy.certificate import Certificate
    from segdeploy.origin import Origin
    from segdeploy.target import PlanFacts

ORDER = 30


@dataclasses.dataclass(frozen=True, slots=True)
class BuildReport:
    """The plan, or the file that a runtime opens which compiles nothing; `plan` then is None."""

    schema: Literal[2]
    path: Path
    kind: str
    sha256: str
    precision: str
    size_mb: float
    origin: "Origin"
    plan: "PlanFacts | None"
    parity: "Certificate | None"


_compiling = options.together(
    click.option(
        "--max-batch", default=8, show_default=True, type=click.IntRange(1, 1024), help="Most images of one call."
    ),
    click.option(
        "--opt-batch", default=1, show_default=True, type=click.IntRange(1, 1024), help="Images it is tuned for."
    ),
    click.option(
        "--workspace",
        "workspace_mb",
        type=click.IntRange(1),
        metavar="MB",
        help="Scratch memory. Default: what there is.",
    ),
    click.option(
        "--timing-cache",
        type=options.FILE,
        help="What TensorRT measured before. Default: one for this version, GPU and driver in the user's cache.",
    ),
    click.option(
        "--pin-timing-cache",
        "pinned",
        is_flag=True,
        help="Only read it, and fail on what it lacks: the same kernels again.",
    ),
    click.option("--compute-capability", metavar="X.Y", help="Of the GPU it is for (trt-rtx). Default: the one here."),
)


@click.command(short_help=__doc__)
@options.model
@click.option(
    "--engine", required=True, metavar="RUNTIME:PRECISION", help="trt:fp16, trt-rtx:int8; others compile nothing."
)
@_compiling
@options.as_json
def build(*, model: str | None, engine: str, as_json: bool, **given: Any) -> None:  # noqa: ANN401 - of BuildOptions
    """Compile a plan into engines/, with a signed manifest; prove it, where this machine has the GPU for it."""
    from segdeploy import api
    from segdeploy.engines import BuildOptions

    made = api.build(model, engine=engine, options=BuildOptions(**given), progress=bars.show_progress)
    rendering.show(_report(made), as_json=as_json, lines=_lines(made))


def _report(made: "Artifact") -> BuildReport:
    return BuildReport(
        schema=2,
        path=made.path,
        kind=made.kind,
        sha256=made.sha256,
        precision=made.precision,
        size_mb=made.path.stat().st_size / 1e6,
        origin=made.origin,
        plan=made.plan,
        parity=made.certificate,
    )


def _lines(made: "Artifact") -> Iterator[str]:
    yield rendering.artifact_line(made)
    if (plan := made.plan) is not None:
        target = f"compute capability {plan.target.compute_capability}, batch 1 to {plan.options.max_batch}"
        yield f"  {plan.runtime} {plan.runtime_version}, {target}"
        typed = ", ".join(f"{share:.1%} {kind}" for kind, share in plan.typed.work.items())
        yield f"  multiply-adds: {typed} in the typed network; delivered: {_delivered(plan)}"
        yield "  signed: any change to the plan or its manifest is refused"
    yield f"  {certificates.verdict_line(made.certificate)}"


def _delivered(plan: "PlanFacts") -> str:
    executed = plan.executed
    if executed.reason is not None:
        return executed.reason
    return f"{rendering.number(executed.delivered_share, '.1%')} in {executed.delivered}"


COMMAND = build
