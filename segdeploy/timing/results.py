"""Result files of `segdeploy bench --save`: read, saved, and the files that were timed kept to be run again."""

import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from segdeploy import artifact, signature, typed_json
from segdeploy.artifact import Artifact
from segdeploy.checkpoints import opening
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.names import below
from segdeploy.spec import Spec
from segdeploy.timing import earlier_results
from segdeploy.timing.earlier_results import EARLIER_SCHEMA
from segdeploy.timing.result_types import KIND, SCHEMA, Result, Subject

MOST_BYTES = 2**28
AGAIN = "Write it again: segdeploy bench --save FILE"


def read(path: Path) -> Result:
    """A result, also one of the earlier schema.

    Raise InvalidRequestError where there is no file, and InvalidFileError, with the field that is wrong, where it is
    no result.
    """
    try:
        text = artifact.bounded(path, MOST_BYTES)
    except FileNotFoundError as error:
        raise InvalidRequestError(f"there is no file {path}.", "Name one that segdeploy bench --save wrote.") from error
    document = typed_json.parse(text, where=str(path), remedy=AGAIN)
    if earlier := _schema(document, path) == EARLIER_SCHEMA:
        document = earlier_results.result(document)
    result = typed_json.convert(document, Result, where=str(path), remedy=AGAIN, partial=earlier)
    _require_whole(result, path)
    return result


def _schema(document: object, path: Path) -> object:
    """The schema, once it is of a result that this version reads."""
    kind = document.get("kind", "unnamed") if isinstance(document, dict) else "unnamed"
    if not isinstance(document, dict) or kind != KIND:
        raise InvalidFileError(f"{path} is no result of segdeploy bench (its kind: {kind}).", AGAIN)
    schema = document.get("schema")
    if schema not in (EARLIER_SCHEMA, SCHEMA):
        read = f"{EARLIER_SCHEMA} and {SCHEMA}"
        raise InvalidFileError(f"{path} is of schema {schema}; this version reads {read}.", AGAIN)
    return schema


def _require_whole(result: Result, path: Path) -> None:
    """Something was timed, every row has its subject, every subject its own name and no file outside the folder."""
    if not result.rows:
        raise InvalidFileError(f"{path} has no rows: nothing was timed.", AGAIN)
    names = set[str]()
    for subject in result.subjects:
        if subject.id in names:
            raise InvalidFileError(f"{path}: the subject {subject.id!r} occurs twice.", AGAIN)
        _require_beside(subject, path)
        names.add(subject.id)
    for row in result.rows:
        if row.subject not in names:
            raise InvalidFileError(f"{path}: a row is of {row.subject!r}, which is no subject.", AGAIN)


def _require_beside(subject: Subject, path: Path) -> None:
    """The file that a subject kept lies below the folder of the result."""
    if subject.kept is None:
        return
    try:
        below(path.parent, subject.kept)
    except InvalidFileError as error:
        raise InvalidFileError(f"{path}: the file kept of {subject.id!r} is elsewhere: {error.what}", AGAIN) from error


def save(result: Result, path: Path, files: Mapping[str, Artifact]) -> Result:
    """Write a result, whole or not at all, and keep the files of its subjects, by their ids, in a folder beside it.

    They are links to the same bytes where the file system can: segdeploy never changes a file, it writes another.
    Return the result as it was written, which says where each file lies.
    """
    folder = path.with_name(f"{path.name}.files")
    places = {name: _keep(file, folder) for name, file in files.items()}
    subjects = (
        dataclasses.replace(subject, kept=os.path.relpath(places[subject.id], path.parent))
        for subject in result.subjects
    )
    written = dataclasses.replace(result, subjects=tuple(subjects))
    artifact.write_atomically(path, typed_json.to_text(written))
    in_use = {place.parent.name for place in places.values()}
    for left in folder.iterdir():
        if left.name not in in_use:
            shutil.rmtree(left, ignore_errors=True)
    return written


def _keep(file: Artifact, folder: Path) -> Path:
    """A copy of a file, its manifest and signature: in a folder named by its sha256, under its own name.

    A plan has to keep its name: it says what the plan is for.
    """
    place = folder / file.sha256[:16] / file.path.name
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = [file.path, artifact.manifest_path(file.path), signature.signature_path(file.path)]
        for source in (each for each in beside if each.exists()):
            _link(source, place.with_name(source.name))
    except OSError as error:
        raise artifact.cannot_write(place, error) from error
    return place


def _link(source: Path, target: Path) -> None:
    with artifact.replacing(target) as temporary:
        temporary.unlink()  # a link replaces nothing
        try:
            os.link(source.resolve(), temporary)
        except OSError:  # another disk, or a file system without links
            shutil.copyfile(source, temporary)


def kept(subject: Subject, path: Path, spec: Spec) -> Artifact:
    """The file that the result at `path` kept of a subject, once its sha256 is still the same."""
    if subject.kept is None:
        raise InvalidRequestError(f"{path} kept no file of {subject.id}.", "Save it again: segdeploy bench --save")
    place = below(path.parent, subject.kept)
    if not place.is_file():
        raise InvalidRequestError(f"{place} is gone.", "Save it again: segdeploy bench --save FILE")
    if artifact.manifest_path(place).is_file():
        found = artifact.read(place)
    else:
        found = dataclasses.replace(opening.read_again(place, spec), spec=spec)
    if found.sha256 != subject.sha256:
        raise InvalidFileError(f"{place} is not the file that was timed.", "Save it again: segdeploy bench --save FILE")
    return found


def require_same_work(then: Subject, now: Subject) -> None:
    """Raise InvalidRequestError where two subjects do not do the same work."""
    facts = {
        "model": (then.model, now.model),
        "engine": (then.engine, now.engine),
        "device": (then.device, now.device),
        "height": (then.height, now.height),
        "width": (then.width, now.width),
        "classes": (then.classes, now.classes),
    }
    for name, (before, after) in facts.items():
        if before != after:
            raise InvalidRequestError(
                f"{name} was {before}, is {after}.", "Compare engines of the same network and size."
            )
