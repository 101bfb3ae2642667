"""A file with its Spec, its origin and its certificate; the manifest, a JSON file beside it, holds them."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from segdeploy import earlier_files, external_data, locks, typed_json
from segdeploy.certificate import Certificate
from segdeploy.errors import InvalidFileError, InvalidRequestError, MissingRuntimeError, SegdeployError
from segdeploy.low_precision import LowPrecision
from segdeploy.names import below
from segdeploy.origin import Origin
from segdeploy.spec import SPEC_KEY, WEIGHTS_KEY, Precision, Spec
from segdeploy.target import PlanFacts, Target

SCHEMA: Final = 3
MANIFEST_BYTES = 2**24  # more is none of ours
AGAIN = "Make it again with this version of segdeploy."
Kind = Literal["checkpoint", "graph", "plan"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file with all that is known of it.

    `form` is how an int8 graph is spelled, and by that which runtimes it is for; None for every other file.
    `certificate` is None before the file was proven; `certificate_as_asked` is the latest under limits that a caller
    gave, and opens no door. `low_precision` is of graphs in fp16, fp8 or int8; `plan` of
    plans.
    """

    path: Path
    kind: Kind
    precision: Precision
    form: str | None = None
    spec: Spec
    sha256: str
    made_at: str
    origin: Origin
    certificate: Certificate | None = None
    certificate_as_asked: Certificate | None = None
    low_precision: LowPrecision | None = None
    plan: PlanFacts | None = None

    @property
    def has_random_weights(self) -> bool:
        """Whether its network is untrained: good for timing alone."""
        return self.origin.command == "random" or (
            self.origin.weights is not None and self.origin.weights.kind == "random"
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Manifest:
    """The JSON beside a file: the artifact, its path the file's name, its Spec as it is written everywhere."""

    schema: Literal[3] = SCHEMA
    path: str
    kind: Kind
    precision: Precision
    form: str | None
    spec: dict[str, Any]
    sha256: str
    made_at: str
    origin: dict[str, Any]
    certificate: Certificate | None
    certificate_as_asked: Certificate | None
    low_precision: LowPrecision | None
    plan: PlanFacts | None


def digest(document: Any) -> str:  # noqa: ANN401 - any JSON value
    """The sha256 of a JSON document, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def cache_folder() -> Path:
    """The cache folder of this user: all that is in it can be made again."""
    return user_folder("XDG_CACHE_HOME", ".cache")


def user_folder(variable: str, below_home: str) -> Path:
    """Our folder where a variable of the XDG specification points, else below the user's home."""
    try:
        return Path(os.environ.get(variable) or Path.home() / below_home) / "segdeploy"
    except RuntimeError as error:
        raise MissingRuntimeError("this user has no home folder.", f"Set HOME, or {variable}.") from error


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def graph_path(folder: Path, name: str, precision: Precision, form: str | None = None) -> Path:
    """`export/unet.fp16.onnx`, `export/unet.int8-unsigned.onnx`."""
    return below(folder, f"{name}.{precision if form is None else f'{precision}-{form}'}.onnx")


def plan_path(folder: Path, name: str, runtime: str, precision: Precision, target: Target) -> Path:
    """`engines/unet.trt.fp16.cc89.plan`."""
    return below(folder, f"{name}.{runtime}.{precision}.{target.suffix}.plan")


def manifest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def manifest(artifact: Artifact) -> bytes:
    """What stands in the manifest of an artifact."""
    fields = {field.name: getattr(artifact, field.name) for field in dataclasses.fields(Artifact)}
    named = {"path": artifact.path.name, "spec": artifact.spec.to_dict(), "origin": artifact.origin.to_dict()}
    return typed_json.to_text(_Manifest(**{**fields, **named}), sort_keys=True)


def write_manifest(artifact: Artifact) -> None:
    write_atomically(manifest_path(artifact.path), manifest(artifact))


def read_manifest(path: Path) -> Artifact:
    """The artifact at `path` as its manifest describes it; the file itself is not read."""
    beside = manifest_path(path)
    try:
        return described(path, bounded(beside, MANIFEST_BYTES))
    except FileNotFoundError as error:
        raise InvalidFileError(
            f"{path} has no manifest ({beside.name}) beside it.", "Make it with segdeploy export, or bring both files."
        ) from error


def bounded(path: Path, most: int, *, links: bool = True) -> bytes:
    """The bytes of a regular file of at most `most`; it may be a link where `links` allows that.

    Raise FileNotFoundError where there is none, and InvalidFileError where it is something else.
    """
    remedy = "Bring the file that segdeploy wrote."
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if links else os.O_NOFOLLOW))
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise InvalidFileError(f"cannot read {path}: it is no regular file.", remedy)
            if facts.st_size > most:
                raise InvalidFileError(f"{path} has {facts.st_size:,} bytes, not the {most:,} of ours.", remedy)
            with os.fdopen(os.dup(descriptor), "rb") as file:
                return file.read(most + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = "it is a link" if error.errno == errno.ELOOP else error.strerror
        raise InvalidFileError(f"cannot read {path}: {reason}.", "Check its permissions.") from error


def described(path: Path, text: bytes) -> Artifact:
    """The artifact at `path` as the bytes of its manifest describe it. Raise InvalidFileError naming what is wrong."""
    beside = str(manifest_path(path))
    document = typed_json.parse(text, where=beside, remedy=AGAIN)
    manifest = typed_json.convert(earlier_files.manifest(document), _Manifest, where=beside, remedy=AGAIN)
    fields = {field.name: getattr(manifest, field.name) for field in dataclasses.fields(Artifact)}
    spec = Spec.from_dict(manifest.spec, where=f"{beside}: spec")
    origin = Origin.from_dict(manifest.origin, where=f"{beside}: origin", remedy=AGAIN)
    return Artifact(**{**fields, "path": path, "spec": spec, "origin": origin})


def name_in(manifest: bytes, where: str) -> str:
    """The file name that a manifest was written for."""
    return str(typed_json.parse(manifest, where=where, remedy=AGAIN)["path"])


def read(path: Path) -> Artifact:
    """The artifact at `path`, once the file is the one its manifest describes."""
    if not path.is_file():
        raise InvalidRequestError(f"there is no file {path}.", "Name one that segdeploy export wrote.")
    artifact = read_manifest(path)
    found = sha256(path)
    if found != artifact.sha256:
        raise InvalidFileError(
            f"{path} is not the file its manifest describes (sha256 {found[:12]}, manifest {artifact.sha256[:12]}).",
            f"Make it again: segdeploy export --model {artifact.spec.name}",
        )
    if artifact.kind == "graph":
        external_data.require_contained(path)
        _require_same_network(artifact)
    return artifact


def _require_same_network(graph: Artifact) -> None:
    """What a graph says of itself is what its manifest says; graphs of segdeploy 0.1 do not name their weights."""
    said = external_data.metadata(graph.path)
    differs = {
        "another Spec": said.get(SPEC_KEY) != graph.spec.to_json(),
        "other weights": WEIGHTS_KEY in said and said[WEIGHTS_KEY] != graph.origin.network_sha256,
    }
    for what in (what for what, is_so in differs.items() if is_so):
        raise InvalidFileError(
            f"{graph.path} carries {what} than its manifest.",
            f"Export it again: segdeploy export --model {graph.spec.name}",
        )


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write the whole file or nothing, also when the disk is full or the process is killed."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; it takes the place of `path` when the block ends well, and is removed when it does not.

    A process that is killed leaves it; the next that writes into the folder removes it (`locks.part`).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locks.part(path.parent) as temporary:
            yield temporary
            temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> SegdeployError:
    remedies = {
        errno.ENOSPC: "Free some space on that disk; nothing was lost, run the command again.",
        errno.EDQUOT: "Free some space in that quota; nothing was lost, run the command again.",
        errno.ENAMETOOLONG: "Give it a shorter name.",
    }
    remedy = remedies.get(error.errno or 0, "Choose a folder you may write to.")
    return InvalidFileError(f"cannot write {path}: {error.strerror or error}.", remedy)
