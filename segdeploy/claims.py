"""Which proofs of a file count here: those in a manifest that is signed or trusted, and those that were made here.

A proof counts for the arithmetic it was made in: the same runtime in the same version, on the same device and the same
instruction set or GPU.
"""

import dataclasses
import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final, Literal

from segdeploy import artifact, engines, signature, typed_json
from segdeploy.artifact import MANIFEST_BYTES, Artifact
from segdeploy.certificate import Certificate
from segdeploy.engines import EngineFile
from segdeploy.errors import SegdeployError
from segdeploy.proof import kit

SCHEMA: Final = 1
REMEDY = "Remove it: the next run makes it anew."

log = logging.getLogger("segdeploy")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _KeptProof:
    """A proof that was made on this machine, of the file with that sha256."""

    schema: Literal[1] = SCHEMA
    file_sha256: str
    certificate: Certificate


def admitted(file: Artifact) -> bool:
    """Whether what a file's manifest claims counts here; a plan whose manifest does not was refused before."""
    return file.kind == "plan" or signature.graph_is_admitted(file)


def counting(file: Artifact) -> Iterator[Certificate]:
    """The proofs of a file that count here, whatever their verdict and whatever engine they are of."""
    if file.certificate is not None and admitted(file):
        yield file.certificate
    for path in sorted(signature.proofs_folder().glob(f"{file.sha256}.*.json")):
        try:
            document = typed_json.parse(artifact.bounded(path, MANIFEST_BYTES), where=str(path), remedy=REMEDY)
            kept = typed_json.convert(document, _KeptProof, where=str(path), remedy=REMEDY)
        except SegdeployError as error:
            log.warning("%s", error.what)
            continue
        if kept.file_sha256 == file.sha256:
            yield kept.certificate


def is_of(found: Certificate, runtime: str, device: str) -> bool:
    """Whether the engine that a certificate is about computes as it would here, now."""
    stage = found.engine
    if stage is None or (stage.runtime, stage.device) != (runtime, device):
        return False
    here = engines.computes_with(runtime, device)
    return (stage.runtime_version, stage.hardware) == (here.runtime_version, here.hardware)


def covering(opened: EngineFile, device: str, batches: Collection[int] = ()) -> Certificate | None:
    """A proof that counts here and is of this engine, as it computes here, in all these batch sizes."""
    for found in counting(opened.file):
        if is_of(found, opened.runtime, device) and (found.refutes or found.batches.issuperset(batches)):
            return found
    return None


def keep_here(opened: EngineFile, device: str, found: Certificate) -> None:
    """Keep a proof among those made on this machine; where that cannot be, it is made again next time."""
    name = f"{opened.file.sha256}.{opened.runtime}.{device}.json"
    kept = _KeptProof(file_sha256=opened.file.sha256, certificate=found)
    try:
        artifact.write_atomically(signature.proofs_folder() / name, typed_json.to_text(kept))
    except SegdeployError as error:
        log.warning("The proof is not kept: %s", error.what)


def kit_of(file: Artifact, graph: Path | None = None) -> kit.Kit | None:
    """The proof kit beside a file, or beside the graph it was built from; None where there is none that counts."""
    for path, content in _kits(file, graph):
        if not signature.is_admitted(path, content):
            continue
        found = kit.from_bytes(content, path)
        network, about = file.origin.network_sha256, found.header
        is_same = found.spec == file.spec and about.precision == file.precision
        if is_same and network in {None, about.weights_sha256}:
            return found
        log.warning("%s is of another network than %s.", path, file.path)
    return None


def unadmitted(file: Artifact, graph: Path | None = None) -> str:
    """The sha256 that `trust` would have to admit: of the proof kit where one is there, else of the manifest."""
    for path, content in _kits(file, graph):
        if not signature.is_admitted(path, content):
            return artifact.sha256(path)
    return artifact.sha256(artifact.manifest_path(file.path))


def _kits(file: Artifact, graph: Path | None) -> Iterator[tuple[Path, bytes]]:
    for path in dict.fromkeys(kit.path_of(each) for each in (file.path, graph) if each is not None):
        if path.is_file():
            yield path, artifact.bounded(path, kit.MOST_BYTES)
