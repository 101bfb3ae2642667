"""Foreign checkpoints of the four networks, written as ours under a name of their own."""

import dataclasses
from pathlib import Path
from typing import Literal

from segdeploy import models, workspace
from segdeploy.checkpoints import checkpoint, foreign, opening
from segdeploy.checkpoints.foreign import DEFAULT, ImportOptions, KeyReport
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.names import require_new_name
from segdeploy.spec import Spec


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """The checkpoint that was written, what it promises, and what became of every tensor of the file."""

    schema: Literal[1] = 1
    source: Path
    checkpoint: Path
    spec: Spec
    keys: KeyReport


def import_checkpoint(
    path: Path, name: str, options: ImportOptions = DEFAULT, *, overwrite: bool = False
) -> ImportReport:
    """Write `checkpoints/NAME.safetensors`.

    Raise InvalidRequestError where the name is one of the networks or is taken, InvalidFileError where the file is none
    of the four networks.
    """
    place = _free_place(name, overwrite=overwrite)
    if path.is_file() and checkpoint.is_ours(path):
        raise InvalidFileError(
            f"{path} is a checkpoint of segdeploy already.",
            f"Use it: segdeploy export --model NETWORK --weights {path}",
        )
    found = foreign.read(path, options)
    spec = dataclasses.replace(found.spec, name=name)
    about = found.as_artifact()
    checkpoint.save(place, found.state, spec, origin=about.origin, made_at=about.made_at)
    return ImportReport(source=path, checkpoint=place, spec=spec, keys=found.report)


def name_of(model: str | None, weights: Path | None, name: str | None, how: ImportOptions) -> str:
    """What an exported network is called: `name`, under which foreign weights are kept here, or `model`.

    With neither, as the weights say. Raise InvalidRequestError where nothing says it.
    """
    if weights is None:
        if name is not None:
            raise InvalidRequestError("--name is for the weights of --weights FILE.", "Leave it out.")
        if model is None:
            raise InvalidRequestError("Missing option '--model'.", "Give --model NAME, or --weights FILE.")
        return model
    if name is None:
        return model or opening.read(weights, how).spec.name
    import_checkpoint(weights, name, how)
    return name


def _free_place(name: str, *, overwrite: bool) -> Path:
    require_new_name(name, "a network")
    if name in models.names():
        raise InvalidRequestError(f"{name} is one of the networks.", "Give the imported one a --name of its own.")
    place = workspace.checkpoint_path(name)
    if place.exists() and not overwrite:
        raise InvalidRequestError(f"{place} is there already.", "Give another --name, or --overwrite.")
    return place
