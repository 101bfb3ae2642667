"""A file that is no network, or holds more than tensor operators, is refused before torch opens it."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.torch_modules import archives, screening

Parts = dict[str, bytes]
RAN: list[str] = []  # what a hostile file made run


class Hostile:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return RAN.append, ("it ran",)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """What torch.export.save writes for a network, its names without the archive's folder."""
    path = tmp_path_factory.mktemp("saved") / "theirs.pt2"
    shapes = {"input": {0: torch.export.Dim("N", min=1)}}
    program = torch.export.export(nn.Conv2d(3, 2, 3, padding=1), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=shapes)
    archives.save(program, path)
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def written(parts: Parts, path: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(f"theirs/{name}", content)
    return path


def changed(parts: Parts, name: str, change: Callable[[Any], None]) -> Parts:
    document = json.loads(parts[name])
    change(document)
    return {**parts, name: json.dumps(document).encode()}


def pickled_weight(parts: Parts) -> Parts:
    def change(config: Any) -> None:  # noqa: ANN401 - JSON
        for entry in config["config"].values():
            entry["use_pickle"] = True

    changed_parts = changed(parts, "data/weights/model_weights_config.json", change)
    return {**changed_parts, "data/weights/weight_0": pickle.dumps(Hostile())}


def pickled_inputs(parts: Parts) -> Parts:
    content = io.BytesIO()
    torch.save((Hostile(),), content)
    return {**parts, "data/sample_inputs/model.pt": content.getvalue()}


def other_call(parts: Parts) -> Parts:
    def change(program: Any) -> None:  # noqa: ANN401 - JSON
        program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.hub.load"

    return changed(parts, "models/model.json", change)


def expression(parts: Parts) -> Parts:
    hostile = b'__import__(\\"os\\").system(\\"true\\")'
    text = parts["models/model.json"]
    begin = text.index(b'"expr_str": "') + len(b'"expr_str": "')
    return {**parts, "models/model.json": text[:begin] + hostile + text[text.index(b'"', begin) :]}


def library(parts: Parts) -> Parts:
    return {**parts, "data/aotinductor/model/x.so": b"\x7fELF"}


@pytest.mark.parametrize(
    "fault, says",
    [
        (pickled_weight, "pickled objects"),
        (pickled_inputs, "example inputs"),
        (other_call, "torch.hub.load"),
        (expression, "no arithmetic"),
        (library, "x.so"),
    ],
)
def test_a_program_that_holds_more_than_operators_is_refused(
    parts: Parts, tmp_path: Path, fault: Callable[[Parts], Parts], says: str
) -> None:
    """torch.export.load would unpickle, look up or evaluate it; nothing of it runs here."""
    screening.require_harmless(written(parts, tmp_path / "good.pt2"))
    path = written(fault(parts), tmp_path / "bad.pt2")
    with pytest.raises(InvalidFileError, match=says):
        archives.opened(path)
    assert RAN == []


def test_a_program_that_is_kept_opens_again_and_names_no_file_of_its_author(parts: Parts, tmp_path: Path) -> None:
    module, size = archives.opened(written(parts, tmp_path / "theirs.pt2"))
    assert size == (8, 8)
    assert module(torch.zeros(3, 3, 8, 8)).shape == (3, 2, 8, 8)
    assert b"site-packages" not in parts["models/model.json"]


def test_an_archive_that_is_compressed_cut_off_or_of_another_kind_is_refused(parts: Parts, tmp_path: Path) -> None:
    """A ZIP bomb is compressed; torch.export.save never does that."""
    bomb = written({**parts, "extra/zeros": bytes(2**24)}, tmp_path / "bomb.pt2", zipfile.ZIP_DEFLATED)
    with pytest.raises(InvalidFileError, match="compressed"):
        archives.opened(bomb)
    whole = written(parts, tmp_path / "whole.pt2").read_bytes()
    other = written({"letter.txt": b"hello"}, tmp_path / "letter.zip")
    for content in (b"", whole[: len(whole) // 2], other.read_bytes()):
        path = tmp_path / "bad.pt2"
        path.write_bytes(content)
        with pytest.raises(InvalidFileError):
            archives.opened(path)
    with pytest.raises(InvalidRequestError, match="there is no file"):
        archives.opened(tmp_path / "none.pt2")


def test_a_damaged_torchscript_archive_is_refused(tmp_path: Path) -> None:
    parts = {"constants.pkl": b"\x80\x02).", "data.pkl": b"damaged", "code/__torch__.py": b"class X(Module):"}
    with pytest.raises(InvalidFileError, match="TorchScript archive that cannot be opened"):
        archives.opened(written(parts, tmp_path / "bad.pt"))
