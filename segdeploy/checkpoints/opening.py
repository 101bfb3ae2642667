"""Any checkpoint: one of ours, or a foreign one that is converted in memory."""

from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy import models
from segdeploy.artifact import Artifact
from segdeploy.checkpoints import checkpoint, foreign
from segdeploy.checkpoints.foreign import DEFAULT, ImportOptions
from segdeploy.spec import Spec

if TYPE_CHECKING:
    from segdeploy.blocks import Network


def read(path: Path, options: ImportOptions = DEFAULT) -> Artifact:
    """Spec and origin of a checkpoint; of a foreign one, what the options leave open is detected."""
    return checkpoint.read(path) if checkpoint.is_ours(path) else foreign.read(path, options).as_artifact()


def read_again(path: Path, spec: Spec) -> Artifact:
    """The checkpoint that a file of this Spec was made from; a foreign one is taken as it was then."""
    return read(path, _as_then(spec))


def load(path: Path, spec: Spec) -> "Network":
    """The network of a checkpoint that was read with this Spec, in evaluation mode, on the CPU, in float32."""
    if checkpoint.is_ours(path):
        network, _ = checkpoint.load(path)
        return network
    return foreign.read(path, _as_then(spec)).network()


def _as_then(spec: Spec) -> ImportOptions:
    variant = {
        **models.defaults(spec.model),
        **spec.variant,
    }  # all of them: a default is no convention that was left open
    size = (spec.height, spec.width)
    return ImportOptions(classes=spec.classes, colours=spec.colours, size=size, variant=variant, force=True)
