"""Compare PyTorch, graph and engine by pixels."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from segdeploy.cli import bars, certificates, exit_codes, options, rendering
from segdeploy.errors import InvalidRequestError, SegdeployError

if TYPE_CHECKING:
    from segdeploy.data.dataset import DataFolder
    from segdeploy.proving import ProofOptions

ORDER = 50


@dataclasses.dataclass(frozen=True, slots=True)
class ProvenFile:
    """What `--all` found of a file: the verdict in words, and the exit code that it alone would give."""

    path: Path
    engine: str
    verdict: str
    exit_code: int


@dataclasses.dataclass(frozen=True, slots=True)
class ProvenFiles:
    """Every file of `--all`."""

    schema: Literal[1]
    files: tuple[ProvenFile, ...]


_proven = options.together(
    click.option("--all", "every", is_flag=True, help="Prove every graph in export/ and every plan in engines/."),
    options.data(
        help="Folder with images, and masks for mIoU. Default: packaged images for packaged weights, else those that "
        "training validated on.",
    ),
    click.option(
        "--batch",
        "batches",
        multiple=True,
        type=click.IntRange(1),
        help="Images that go in at once, besides one alone. Default: what the file is made for.",
    ),
)
_how = options.together(
    options.allow_inconclusive,
    click.option("--bisect", is_flag=True, help="Find the first layer that departs, on a copy of the graph."),
    click.option("--require-engine", is_flag=True, help="Exit 3 where the engine cannot run on this machine."),
)
_limits = options.together(
    options.agreement(
        help="Pixels that must agree with PyTorch. Default: 0.9999 (fp32), or the budget the graph was made in."
    ),
    options.max_drop(
        help="mIoU that may be lost, with labels. Default: 0.05 (fp32), or the budget the graph was made in."
    ),
    click.option(
        "--max-unexplained",
        type=click.FloatRange(0, 1),
        metavar="SHARE",
        help="Of fp32: pixels that may differ where PyTorch is sure. Default: 0.",
    ),
)


@click.command(short_help=__doc__)
@options.model
@options.engine
@options.running
@_proven
@options.force
@_limits
@_how
@options.as_json
def parity(
    *,
    model: str | None,
    engine: str,
    device: str,
    data: "DataFolder | None",
    force: bool,
    cuda: str | None,
    cuda_graphs: bool,
    every: bool,
    as_json: bool,
    **given: Any,  # noqa: ANN401 - of ProofOptions, by the same names
) -> None:
    """Compare PyTorch, graph and engine pixel by pixel; exit 4 where the masks differ, or nothing could have shown it.

    What passes only under limits given here stays refused by every other command.
    """
    from segdeploy import api
    from segdeploy.proving import ProofOptions

    asked = ProofOptions(run=options.run_options(cuda, cuda_graphs=cuda_graphs), **given)
    if every:
        sys.exit(_prove_all(model, data, device, asked, force=force, as_json=as_json))
    found = api.parity(
        model, engine=engine, data=data, device=device, options=asked, force=force, progress=bars.show_progress
    )
    lines = [*certificates.details(found), certificates.verdict_line(found)]
    rendering.show(found, as_json=as_json, lines=lines, table=lambda: certificates.stage_table(found))
    if found.gated and not found.proves:
        sys.exit(exit_codes.FAILED_GATE)


def _prove_all(
    model: str | None, data: "DataFolder | None", device: str, asked: "ProofOptions", *, force: bool, as_json: bool
) -> int:
    """Prove each file, a line each; give the exit code of the worst."""
    from segdeploy import api, workspace

    if model is not None:
        raise InvalidRequestError("--all proves every file; --model names one.", "Give one of the two.")
    proven, worst = [], 0
    for path, engine in workspace.files_to_prove():
        verdict, code = None, 0
        try:
            found = api.parity(
                path, engine=engine, data=data, device=device, options=asked, force=force, progress=bars.show_progress
            )
            verdict = certificates.verdict_line(found)
            code = exit_codes.FAILED_GATE if found.gated and not found.proves else 0
        except SegdeployError as error:
            verdict, code = f"not proven: {error.what}", error.exit_code
        proven.append(ProvenFile(path, engine, verdict, code))
        worst = max(worst, code)
    lines = [f"{each.path}: {each.verdict}" for each in proven] or ["There is nothing to prove in export/ or engines/."]
    rendering.show(ProvenFiles(1, tuple(proven)), as_json=as_json, lines=lines)
    return worst


COMMAND = parity
