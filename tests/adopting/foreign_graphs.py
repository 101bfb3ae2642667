"""Tiny graphs as other people export them: one convolution, in every order of axes and with every kind of output."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

SIZE = (16, 24)
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}


@dataclasses.dataclass(frozen=True)
class Foreign:
    """How a graph is written; `kind`: of its output. Sides and batch are None where they are declared dynamic."""

    layout: str = "NCHW"
    dtype: str = "float32"
    kind: str = "scores"
    channels: int = 3
    classes: int = 3
    stride: int = 1
    opset: int = 17
    batch: int | None = 1
    sides: tuple[int | None, int | None] = (16, 24)
    seed: int = 0

    def model(self) -> onnx.ModelProto:
        random = np.random.default_rng(self.seed)
        count = 1 if self.kind in {"sigmoid", "logit"} else self.classes
        weight = random.normal(0, 0.3, (count, self.channels, 3, 3)).astype(np.float32)
        nodes, tensor = [], "in:put/0"
        if self.dtype != "float32":
            nodes.append(helper.make_node("Cast", [tensor], ["f/quantized"], to=TensorProto.FLOAT))
            tensor = "f/quantized"
        if self.layout != "NCHW":
            order = [self.layout.index(axis) for axis in "NCHW"]
            nodes.append(helper.make_node("Transpose", [tensor], ["f"], perm=order))
            tensor = "f"
        pads: dict[str, Any] = {"pads": [1, 1, 1, 1], "strides": [self.stride] * 2, "name": "/a/b:Conv"}
        nodes.append(helper.make_node("Conv", [tensor, "f/quantized/scale"], ["c"], **pads))
        output, kind = "c", TensorProto.FLOAT
        if self.kind in {"class map", "gaps"}:
            nodes.append(helper.make_node("ArgMax", [output], ["class_map"], axis=1, keepdims=0))
            output, kind = "class_map", TensorProto.INT64
        if self.kind == "gaps":
            nodes.append(helper.make_node("Gather", ["table", output], ["gaps"], axis=0))
            output = "gaps"
        if self.kind == "sigmoid":
            nodes.append(helper.make_node("Sigmoid", [output], ["s"]))
            output = "s"
        if self.kind == "softmax last":
            nodes.append(helper.make_node("Transpose", [output], ["t"], perm=[0, 2, 3, 1]))
            nodes.append(helper.make_node("Softmax", ["t"], ["s"], axis=3))
            output = "s"
        side = {"N": self.batch, "C": self.channels, "H": self.sides[0], "W": self.sides[1]}
        taken = helper.make_tensor_value_info("in:put/0", TYPES[self.dtype], [side[axis] for axis in self.layout])
        given = helper.make_tensor_value_info(output, kind, [1, 2, 3, 5])  # it is not of that shape
        constants = [numpy_helper.from_array(weight, "f/quantized/scale")]
        if self.kind == "gaps":
            constants.append(numpy_helper.from_array(np.array([0, 7, 255]), "table"))
        graph = helper.make_graph(nodes, "theirs", [taken], [given], constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)

    def save(self, path: Path) -> Path:
        path.write_bytes(self.model().SerializeToString())
        return path


def noise(folder: Path, count: int = 4) -> Path:
    """Images of noise, in a folder."""
    random = np.random.default_rng(1)
    (folder / "images").mkdir(parents=True)
    for index in range(count):
        Image.fromarray(random.integers(0, 256, (*SIZE, 3), np.uint8)).save(folder / "images" / f"{index}.png")
    return folder


def decided_by_red(path: Path) -> None:
    """Class 1 where the first channel, of values in -1..1, is above 0.2, and brighter than the last by 0.1."""
    weight = np.zeros((2, 3, 1, 1), np.float32)
    weight[1, :, 0, 0] = [1.0, 0.0, -0.5]
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["scores"], name="head")]
    taken = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3, *SIZE])
    given = helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)
    constants = [
        numpy_helper.from_array(weight, "w"),
        numpy_helper.from_array(np.array([0, -0.2], np.float32), "b"),
    ]
    graph = helper.make_graph(nodes, "theirs", [taken], [given], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def labelled_by_red(folder: Path) -> None:
    """Images of noise, and the masks that follow from their values in -1..1."""
    noise(folder, 12)
    (folder / "masks").mkdir()
    (folder / "classes.csv").write_text("background,0,0,0\nforeground,255,0,0\n")
    for file in (folder / "images").glob("*.png"):
        values = np.asarray(Image.open(file)) / 127.5 - 1
        mask = (values[..., 0] - 0.5 * values[..., 2] > 0.2).astype(np.uint8)
        Image.fromarray(mask).save(folder / "masks" / file.name)
