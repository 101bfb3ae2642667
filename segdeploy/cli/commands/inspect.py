"""What a file promises and what was proven of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segdeploy.cli import options, rendering

if TYPE_CHECKING:
    from segdeploy.inspection import Inspection

ORDER = 110


@click.command(short_help=__doc__)
@click.argument("path", type=click.Path(path_type=Path))
@options.as_json
def inspect(*, path: Path, as_json: bool) -> None:
    """What a checkpoint, a graph or a plan promises, where it came from and what was proven of it."""
    from segdeploy import api

    document = _document(api.inspect(path))
    rendering.show(document, as_json=as_json, lines=rendering.outline(document))


def _document(found: "Inspection") -> dict[str, Any]:
    """The fields of the manifest, and what is known of the file besides."""
    from segdeploy import artifact, typed_json

    trust = {} if found.trust is None else {"trust": typed_json.to_builtins(found.trust)}
    manifest = typed_json.to_builtins(found.artifact)
    return {"schema": artifact.SCHEMA, **manifest, "size_mb": found.size_mb, **trust}


COMMAND = inspect
