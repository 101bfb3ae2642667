"""What a file promises, and which networks and weights there are."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from segdeploy import artifact, claims, models, signature, workspace
from segdeploy.artifact import Artifact
from segdeploy.certificate import WeightsKind
from segdeploy.checkpoints import checkpoint
from segdeploy.errors import InvalidFileError, SegdeployError
from segdeploy.workspace import PACKAGED


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Whether what a manifest claims counts here (a plan is not opened else); its sha256 is what `trust` takes."""

    admitted: bool
    reason: str
    manifest_sha256: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """A file with all that is known of it; `trust` is of graphs and plans."""

    artifact: Artifact
    size_mb: float
    trust: Trust | None


def inspect(path: Path) -> Inspection:
    """What a checkpoint, a graph or a plan promises, where it came from and what was proven of it."""
    found = checkpoint.read(path) if path.suffix == ".safetensors" else artifact.read(path)
    trust = None if found.kind == "checkpoint" else _trust_in(found)
    return Inspection(artifact=found, size_mb=path.stat().st_size / 1e6, trust=trust)


def _trust_in(file: Artifact) -> Trust:
    sha256 = artifact.sha256(artifact.manifest_path(file.path))
    try:
        if file.kind == "plan":
            signature.read(file.path)
        elif not claims.admitted(file):
            return Trust(admitted=False, reason="it is not signed with this key", manifest_sha256=sha256)
    except SegdeployError as error:
        return Trust(admitted=False, reason=error.what, manifest_sha256=sha256)
    reason = "it is in the list of `segdeploy trust`" if sha256 in signature.trusted() else "it is signed with this key"
    return Trust(admitted=True, reason=reason, manifest_sha256=sha256)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WeightsAtHand:
    """A checkpoint that is here, with its mIoU on its validation images, in 0..1."""

    kind: WeightsKind
    path: Path
    val_miou: float | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """A network, its options with their defaults, and the weights that are at hand."""

    name: str
    description: str
    options: Mapping[str, Any]
    weights: tuple[WeightsAtHand, ...]


def list_models() -> list[ModelDescription]:
    """Every network."""
    return [
        ModelDescription(
            name=name,
            description=models.description(name),
            options=models.defaults(name),
            weights=tuple(_weights_at_hand(name)),
        )
        for name in models.names()
    ]


def _weights_at_hand(name: str) -> list[WeightsAtHand]:
    """Of a network: what has its name, then what is called otherwise."""
    own: tuple[WeightsKind, Path] = ("file", workspace.checkpoint_path(name))
    found = [own, ("packaged", PACKAGED / f"{name}.safetensors")]
    at_hand = [_at_hand(kind, checkpoint.read(path)) for kind, path in found if path.is_file()]
    return [*at_hand, *(_at_hand("file", each) for each in _called_otherwise() if each.spec.model == name)]


def _called_otherwise() -> Iterator[Artifact]:
    """The checkpoints that are not called after their network; files that are none of ours may lie between them."""
    for path in workspace.named_checkpoints():
        if path.stem not in models.names():
            with contextlib.suppress(InvalidFileError):
                yield checkpoint.read(path)


def _at_hand(kind: WeightsKind, found: Artifact) -> WeightsAtHand:
    return WeightsAtHand(kind=kind, path=found.path, val_miou=_score(found))


def _score(found: Artifact) -> float | None:
    return None if found.origin.training is None else found.origin.training.val_miou
