"""Compare PyTorch, graph and engine by pixels."""

import sys
from pathlib import Path
from typing import Any

import click

from segdeploy.cli import bars, certificates, exit_codes, options, rendering

ORDER = 50

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
@click.option(
    "--data", type=options.FOLDER, help="Folder with images/, and masks/ for mIoU. Default: the packaged images."
)
@_limits
@click.option("--bisect", is_flag=True, help="Find the first layer that departs, on a copy of the graph.")
@click.option("--require-engine", is_flag=True, help="Exit 3 where the engine cannot run on this machine.")
@options.as_json
def parity(
    *,
    model: str | None,
    engine: str,
    device: str,
    data: Path | None,
    cuda: str | None,
    cuda_graphs: bool,
    as_json: bool,
    **given: Any,  # noqa: ANN401 - of ProofOptions, by the same names
) -> None:
    """Compare PyTorch, graph and engine pixel by pixel; exit 4 where they draw different masks."""
    from segdeploy import api
    from segdeploy.proving import ProofOptions

    asked = ProofOptions(run=options.run_options(cuda, cuda_graphs=cuda_graphs), **given)
    found = api.parity(model, engine=engine, data=data, device=device, options=asked, progress=bars.show_progress)
    lines = [*certificates.details(found), certificates.verdict_line(found)]
    rendering.show(found, as_json=as_json, lines=lines, table=lambda: certificates.stage_table(found))
    if found.refutes:
        sys.exit(exit_codes.FAILED_GATE)


COMMAND = parity
