"""A graph reads what lies beside it and nothing else; the walk that finds out needs no onnx package."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Run, photographs
from onnx import TensorProto, helper, numpy_helper

from segdeploy import artifact
from segdeploy.errors import InvalidFileError
from segdeploy.external_data import require_contained

FUZZED = 3000


def outside(location: str, offset: str | None = None, length: str | None = None) -> TensorProto:
    """A tensor whose values lie in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": offset, "length": length}.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    return tensor


def model(*initializers: TensorProto, nodes: list[onnx.NodeProto] | None = None) -> onnx.ModelProto:
    graph = helper.make_graph(nodes or [], "g", [], [], list(initializers))
    return helper.make_model(graph)


def written(folder: Path, described: onnx.ModelProto) -> Path:
    path = folder / "g.onnx"
    path.write_bytes(described.SerializeToString())
    (folder / "w.bin").write_bytes(bytes(16))
    return path


def in_a_branch(tensor: TensorProto) -> onnx.ModelProto:
    branch = helper.make_graph([], "then", [], [], [tensor])
    return model(nodes=[helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)])


def in_a_function(tensor: TensorProto) -> onnx.ModelProto:
    made = model()
    constant = helper.make_node("Constant", [], ["y"], value=tensor)
    made.functions.append(helper.make_function("d", "f", [], ["y"], [constant], [helper.make_opsetid("", 20)]))
    return made


def in_a_sparse_tensor(tensor: TensorProto) -> onnx.ModelProto:
    made = model()
    made.graph.sparse_initializer.add().values.CopyFrom(tensor)
    return made


def in_training(tensor: TensorProto) -> onnx.ModelProto:
    made = model()
    made.training_info.add().initialization.initializer.append(tensor)
    return made


PLACES: dict[str, Callable[[TensorProto], onnx.ModelProto]] = {
    "initializer": model,
    "constant": lambda tensor: model(nodes=[helper.make_node("Constant", [], ["y"], value=tensor)]),
    "branch": in_a_branch,
    "function": in_a_function,
    "sparse": in_a_sparse_tensor,
    "training": in_training,
}


@pytest.mark.parametrize("place", PLACES)
def test_what_lies_beside_and_is_large_enough_is_read(tmp_path: Path, place: str) -> None:
    require_contained(written(tmp_path, PLACES[place](outside("w.bin", "4", "12"))))


@pytest.mark.parametrize("place", PLACES)
def test_what_lies_elsewhere_is_found_wherever_a_tensor_can_stand(tmp_path: Path, place: str) -> None:
    with pytest.raises(InvalidFileError, match=r"reads '\.\./w\.bin', which does not lie beside it"):
        require_contained(written(tmp_path, PLACES[place](outside("../w.bin"))))


@pytest.mark.parametrize("location", ["", ".", "..", "/etc/passwd", "a/w.bin", "..\\w.bin", "w.bin\0", "./w.bin"])
def test_a_location_is_a_name(tmp_path: Path, location: str) -> None:
    with pytest.raises(InvalidFileError, match="does not lie beside it"):
        require_contained(written(tmp_path, model(outside(location))))


@pytest.mark.parametrize(
    "offset,length,what",
    [
        ("8", "9", "reads 17 bytes of w.bin, which has 16"),
        (None, "17", "reads 17 bytes"),
        ("99", None, "reads 99 bytes"),
        ("-1", "4", "gives the size '-1'"),
        ("four", "4", "gives the size 'four'"),
        ("²", "4", "gives the size"),
    ],
)
def test_sizes_are_bounded_by_the_file(tmp_path: Path, offset: str | None, length: str | None, what: str) -> None:
    with pytest.raises(InvalidFileError, match=what):
        require_contained(written(tmp_path, model(outside("w.bin", offset, length))))


def test_a_link_a_folder_and_nothing_are_no_files(tmp_path: Path) -> None:
    path = written(tmp_path, model(outside("w.bin")))
    (tmp_path / "w.bin").rename(tmp_path / "elsewhere.bin")
    with pytest.raises(InvalidFileError, match="No such file"):
        require_contained(path)
    (tmp_path / "w.bin").symlink_to("elsewhere.bin")
    with pytest.raises(InvalidFileError, match="is a link or no file"):
        require_contained(path)
    (tmp_path / "w.bin").unlink()
    (tmp_path / "w.bin").mkdir()
    with pytest.raises(InvalidFileError, match="is a link or no file"):
        require_contained(path)


def test_a_graph_of_ours_is_one_file(small: Path) -> None:
    require_contained(small / "export/unet.fp32.onnx")


def test_any_bytes_are_refused_or_read_and_nothing_else(tmp_path: Path) -> None:
    """Fields that overrun, numbers without an end, depth without bottom: an error of ours, at once."""
    weights = numpy_helper.from_array(np.zeros(4, np.float32), "v")
    whole = written(tmp_path, in_a_branch(outside("w.bin"))).read_bytes() + model(weights).SerializeToString()
    path, chance, refused = tmp_path / "fuzzed.onnx", random.Random(0), 0  # noqa: S311 - no secret
    for _ in range(FUZZED):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data[: chance.randint(1, len(data))])
        try:
            require_contained(path)
        except InvalidFileError:
            refused += 1
    assert refused > FUZZED / 10


def test_depth_without_bottom_is_refused(tmp_path: Path) -> None:
    """Graphs in attributes of nodes of graphs, each a few bytes longer than the one inside."""
    inner = b""
    for _ in range(3000):
        for field in (6, 5, 1):  # AttributeProto.g, NodeProto.attribute, GraphProto.node
            inner = bytes([field << 3 | 2]) + varint(len(inner)) + inner
    path = tmp_path / "deep.onnx"
    path.write_bytes(bytes([7 << 3 | 2]) + varint(len(inner)) + inner)
    with pytest.raises(InvalidFileError, match="is no ONNX file"):
        require_contained(path)


def test_a_field_that_only_others_would_see_is_refused(tmp_path: Path) -> None:
    """Protobuf's own reader drops what a tag has above 32 bits: this is external_data to it, and nothing to a walk."""
    entry = bytes([1 << 3 | 2, 8]) + b"location" + bytes([2 << 3 | 2, 9]) + b"../secret"
    tensor = b"\xea\x80\x80\x80\x10" + varint(len(entry)) + entry
    graph = bytes([5 << 3 | 2]) + varint(len(tensor)) + tensor
    path = tmp_path / "hidden.onnx"
    path.write_bytes(bytes([7 << 3 | 2]) + varint(len(graph)) + graph)
    with pytest.raises(InvalidFileError, match="is no ONNX file: there is no field"):
        require_contained(path)


def test_two_places_for_one_tensor_are_refused(tmp_path: Path) -> None:
    """One reader takes the first, another the last."""
    tensor = outside("w.bin")
    tensor.external_data.add(key="location", value="../w.bin")
    with pytest.raises(InvalidFileError, match="two values for 'location'"):
        require_contained(written(tmp_path, model(tensor)))


def varint(value: int) -> bytes:
    rest = value >> 7
    return bytes([value]) if not rest else bytes([value & 0x7F | 0x80]) + varint(rest)


def test_an_empty_file_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(InvalidFileError, match="is no ONNX file"):
        require_contained(tmp_path / "empty.onnx")


@pytest.mark.parametrize("engine", ["ort:fp32", "ov:fp32", "trt-rtx:fp32"])
def test_no_runtime_is_handed_a_graph_that_reads_elsewhere(run: Run, workspace: Path, engine: str) -> None:
    """Its manifest may well be right: anybody can write one."""
    path = workspace / "export/unet.fp32.onnx"
    described, graph = artifact.read(path), onnx.load(path)
    graph.graph.initializer.append(outside("../../secret"))
    path.write_bytes(graph.SerializeToString())
    manifest = artifact.manifest_path(path)
    manifest.write_text(manifest.read_text().replace(described.sha256, artifact.sha256(path)))
    photographs(workspace, "photos/a.png")
    asked = ["build", "--compute-capability", "8.9"] if engine.startswith("trt") else ["infer", "photos"]
    refused = run(*asked, "--model", "unet", "--engine", engine)
    assert (refused.code, refused.err.count("\n")) == (3, 2), refused.err
    assert "reads '../../secret', which does not lie beside it" in refused.err
