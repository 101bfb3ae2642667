"""`segdeploy report`: result files of `bench --save` as one HTML page that asks nothing of any network."""

import base64
import collections
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy import artifact
from segdeploy.errors import InvalidRequestError, MissingRuntimeError
from segdeploy.reporting import _document, sections
from segdeploy.reporting._document import Document

if TYPE_CHECKING:
    from jinja2 import Template

SCHEMA = 1
MOST_BYTES = 5_000_000
RESERVE = 20_000  # what a few pictures more add to the page besides their pixels
TITLE = "Which engine to ship"


def write(paths: Sequence[Path], out: Path, *, title: str | None = None) -> dict[str, Any]:
    """Write the page of these files to `out`, whole or not at all; below 5 MB, if need be with fewer pictures."""
    if out.resolve() in {path.resolve() for path in paths}:
        raise InvalidRequestError(f"--out {out} is one of the result files.", "Name another file for the page.")
    template = _template()
    documents = _apart(_document.read_all(paths))
    page = _within(MOST_BYTES, documents, template, title or TITLE)
    artifact.write_atomically(out, page)
    subjects = [{"document": d.name, "id": s["id"]} for d in documents for s in d.facts["subjects"]]
    return {"schema": SCHEMA, "path": str(out), "size_mb": len(page) / 1e6, "subjects": subjects}


def _apart(documents: Sequence[Document]) -> list[Document]:
    """Files of one name from two folders get a number."""
    seen = collections.Counter[str]()
    named: list[Document] = []
    for document in documents:
        seen[document.name] += 1
        count = seen[document.name]
        named.append(document if count == 1 else dataclasses.replace(document, name=f"{document.name} ({count})"))
    return named


def _template() -> "Template":
    try:
        import jinja2
    except ImportError as error:
        raise MissingRuntimeError(
            "a report needs Jinja2, which is not installed.", "Install it: pip install 'segdeploy[report]'"
        ) from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(sections.FILTERS)
    environment.globals.update(sections.HELPERS)
    return environment.from_string(_packaged("page.html.jinja"))


def _packaged(name: str) -> str:
    return resources.files("segdeploy.benchmarks").joinpath("page", name).read_text(encoding="utf-8")


def _within(most: int, documents: Sequence[Document], template: "Template", title: str) -> bytes:
    """The page with as many pictures as fit, of every file the worst first."""
    none = [0] * len(documents)
    bare = len(_render(documents, none, template, title))
    kept = _fitting(documents, most - bare - RESERVE)
    return _render(documents, kept, template, title)


def _fitting(documents: Sequence[Document], room: int) -> list[int]:
    """How many pictures of each file fit: the worst of every file, then the next of every file ..."""
    kept, seen = [0] * len(documents), set[str]()
    for index in range(max(len(document.facts["pictures"]) for document in documents)):
        for number, document in enumerate(documents):
            if index >= len(document.facts["pictures"]):
                continue
            picture = document.facts["pictures"][index]
            pixels = set(_pixels(picture)) - seen
            room -= sum(map(len, pixels)) + len(json.dumps(picture["agreement"])) + 60 * len(picture["masks"]) + 1500
            if room < 0:
                return kept
            seen |= pixels
            kept[number] += 1
    return kept


def _pixels(picture: Mapping[str, Any]) -> list[str]:
    return [each for each in (picture["photo"], picture["truth"], *picture["masks"].values()) if each is not None]


def _render(documents: Sequence[Document], kept: Sequence[int], template: "Template", title: str) -> bytes:
    style, script = _packaged("style.css"), _packaged("script.js")
    context = sections.context(documents, kept)
    data = _embedded(_data(documents, context, kept))
    text = template.render(title=title, style=style, script=script, policy=_policy(style, script), data=data, **context)
    return text.encode(errors="replace")  # JSON may hold half a surrogate pair


def _policy(style: str, script: str) -> str:
    """Nothing is fetched, and nothing runs but what stands in the page."""
    hashed = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashed[0]}'; script-src 'sha256-{hashed[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _data(documents: Sequence[Document], context: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """The files as they were, each image once and named by its number."""
    numbers: dict[str, int] = {}
    files = [
        {"name": document.name, "content": _with_numbers(document, most, numbers)}
        for document, most in zip(documents, kept, strict=True)
    ]
    positions = {id(document): index for index, document in enumerate(documents)}
    subjects = [
        {
            "document": positions[id(group.document)],
            "id": subject.facts["id"],
            "name": f"{group.model} {subject.label}",
            "reference": subject.standing == "reference",
        }
        for group, subject in context["subjects"]
    ]
    picks = [verdict.pick.subject.number for verdict in context["verdicts"] if verdict.pick]
    return {"files": files, "images": list(numbers), "subjects": subjects, "picks": picks}


def _with_numbers(document: Document, most: int, numbers: dict[str, int]) -> dict[str, Any]:
    def number(pixels: str | None) -> int | None:
        return None if pixels is None else numbers.setdefault(pixels, len(numbers))

    pictures = [
        {
            **picture,
            "photo": number(picture["photo"]),
            "truth": number(picture["truth"]),
            "masks": {key: number(mask) for key, mask in picture["masks"].items()},
        }
        for picture in document.facts["pictures"][:most]
    ]
    return {**document.raw, "pictures": pictures}


def _embedded(data: Mapping[str, Any]) -> str:
    """JSON inside a script element: no text in it can end the element or open a comment."""
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
