"""`segdeploy report`: result files of `bench --save` as one HTML page that asks nothing of any network."""

import base64
import collections
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from segdeploy import artifact, extras, typed_json
from segdeploy.errors import InvalidRequestError
from segdeploy.reporting import sections
from segdeploy.reporting.sections import Contents
from segdeploy.reporting.verdict import NamedResult
from segdeploy.timing import results
from segdeploy.timing.result_types import DrawnPicture

if TYPE_CHECKING:
    from jinja2 import Template

SCHEMA: Final = 1
MOST_BYTES = 5_000_000
RESERVE = 20_000  # what a few pictures more add to the page besides their pixels
TITLE = "Which engine to ship"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ListedEngine:
    """An engine of the page: the result file that it stands in, and its id there."""

    document: str
    id: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WrittenPage:
    """The page that was written, and the engines it is of, in their order there."""

    schema: Literal[1] = SCHEMA
    path: Path
    size_mb: float
    subjects: tuple[ListedEngine, ...]


def write(paths: Sequence[Path], out: Path, *, title: str | None = None) -> WrittenPage:
    """Write the page of these files to `out`, whole or not at all; below 5 MB, if need be with fewer pictures."""
    if out.resolve() in {path.resolve() for path in paths}:
        raise InvalidRequestError(f"--out {out} is one of the result files.", "Name another file for the page.")
    template = _template()
    documents = _apart([NamedResult(path.name, results.read(path)) for path in paths])
    page = _within(MOST_BYTES, documents, template, title or TITLE)
    artifact.write_atomically(out, page)
    listed = [ListedEngine(document=each.name, id=subject.id) for each in documents for subject in each.result.subjects]
    return WrittenPage(path=out, size_mb=len(page) / 1e6, subjects=tuple(listed))


def _apart(documents: Sequence[NamedResult]) -> list[NamedResult]:
    """Files of one name from two folders get a number."""
    seen = collections.Counter[str]()
    named: list[NamedResult] = []
    for document in documents:
        seen[document.name] += 1
        count = seen[document.name]
        named.append(document if count == 1 else dataclasses.replace(document, name=f"{document.name} ({count})"))
    return named


@extras.named_where_missing()
def _template() -> "Template":
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(sections.FILTERS)
    environment.globals.update(sections.HELPERS)
    return environment.from_string(_packaged("page.html.jinja"))


def _packaged(name: str) -> str:
    return resources.files("segdeploy.reporting").joinpath("template", name).read_text(encoding="utf-8")


def _within(most: int, documents: Sequence[NamedResult], template: "Template", title: str) -> bytes:
    """The page with as many pictures as fit, of every file the worst first."""
    none = [0] * len(documents)
    bare = len(_render(documents, none, template, title))
    kept = _fitting(documents, most - bare - RESERVE)
    return _render(documents, kept, template, title)


def _fitting(documents: Sequence[NamedResult], room: int) -> list[int]:
    """How many pictures of each file fit: the worst of every file, then the next of every file ..."""
    kept, seen = [0] * len(documents), set[str]()
    for index in range(max(len(document.result.pictures) for document in documents)):
        for number, document in enumerate(documents):
            if index >= len(document.result.pictures):
                continue
            picture = document.result.pictures[index]
            pixels = set(_pixels(picture)) - seen
            room -= sum(map(len, pixels)) + len(json.dumps(dict(picture.agreement))) + 60 * len(picture.masks) + 1500
            if room < 0:
                return kept
            seen |= pixels
            kept[number] += 1
    return kept


def _pixels(picture: DrawnPicture) -> list[str]:
    return [each for each in (picture.photo, picture.truth, *picture.masks.values()) if each is not None]


def _render(documents: Sequence[NamedResult], kept: Sequence[int], template: "Template", title: str) -> bytes:
    style, script = _packaged("style.css"), _packaged("script.js")
    contents = sections.contents(documents, kept)
    data = _embedded(_data(contents, kept))
    about = {"title": title, "style": style, "script": script, "policy": _policy(style, script), "data": data}
    text = template.render(**about, **dict(sections.fields(contents)))
    return text.encode(errors="replace")  # JSON may hold half a surrogate pair


def _policy(style: str, script: str) -> str:
    """Nothing is fetched, and nothing runs but what stands in the page."""
    hashed = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashed[0]}'; script-src 'sha256-{hashed[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _data(contents: Contents, kept: Sequence[int]) -> dict[str, Any]:
    """What the page's script reads: the results, in which each image is a number, and all images once."""
    numbers: dict[str, int] = {}
    files = [
        {"name": document.name, "content": _with_numbers(document, most, numbers)}
        for document, most in zip(contents.documents, kept, strict=True)
    ]
    positions = {id(document): index for index, document in enumerate(contents.documents)}
    subjects = [
        {
            "document": positions[id(group.document)],
            "id": subject.facts.id,
            "name": f"{group.model} {subject.label}",
            "reference": subject.standing == "reference",
        }
        for group, subject in contents.subjects
    ]
    picks = [verdict.pick.subject.number for verdict in contents.verdicts if verdict.pick]
    return {"files": files, "images": list(numbers), "subjects": subjects, "picks": picks}


def _with_numbers(document: NamedResult, most: int, numbers: dict[str, int]) -> dict[str, Any]:
    """A result as JSON with its first `most` pictures, each image in them replaced by its number."""

    def number(pixels: str | None) -> int | None:
        return None if pixels is None else numbers.setdefault(pixels, len(numbers))

    pictures = [
        {
            **typed_json.to_builtins(picture),
            "photo": number(picture.photo),
            "truth": number(picture.truth),
            "masks": {key: number(mask) for key, mask in picture.masks.items()},
        }
        for picture in document.result.pictures[:most]
    ]
    without = dataclasses.replace(document.result, pictures=())
    return {**typed_json.to_builtins(without), "pictures": pictures}


def _embedded(data: Mapping[str, Any]) -> str:
    """JSON inside a script element: no text in it can end the element or open a comment."""
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
