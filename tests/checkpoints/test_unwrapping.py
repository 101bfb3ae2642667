"""What people save around weights, and what hostile files hold: taken, named, or refused with nothing run."""

import argparse
import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_networks as theirs
import numpy as np
import pytest
import torch
from torch import Tensor

from segdeploy.checkpoints import foreign, reading, unwrapping
from segdeploy.checkpoints.foreign import ImportOptions
from segdeploy.errors import InvalidFileError, InvalidRequestError, SegdeployError

State = dict[str, Any]


@pytest.fixture
def state() -> State:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return dict(theirs.MilesialUNet(3, 3, bilinear=True).state_dict())


class HistoryBuffer:
    """As mmengine keeps beside the weights: a class that is not installed where the file is read."""

    def __init__(self) -> None:
        self.log = np.arange(3.0)


class ConfigDict(dict):  # type: ignore[type-arg]
    pass


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


WRAPPINGS: dict[str, Callable[[State], Any]] = {
    "bare": lambda state: state,
    "ordered": OrderedDict,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "best": np.float64(0.5)},
    "model": lambda state: {"model": state, "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {0: state}}},
    "nested": lambda state: {"checkpoint": {"net": prefixed(state, "module.")}},
    "module.net.": lambda state: prefixed(state, "module.net."),
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "mmengine": lambda state: {
        "meta": ConfigDict(cfg="model = dict()"),
        "state_dict": OrderedDict(state),
        "message_hub": {"log": HistoryBuffer()},
    },
    "parameters": lambda state: {
        name: torch.nn.Parameter(tensor) if tensor.is_floating_point() else tensor for name, tensor in state.items()
    },
    "average alone": lambda state: {"ema_state_dict": prefixed(state, "module."), "epoch": 1},
    "half": lambda state: {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()
    },
    "bfloat16": lambda state: {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in state.items()
    },
    "views": lambda state: {name: _view(tensor) for name, tensor in state.items()},
}


def _view(tensor: Tensor) -> Tensor:
    """The same values, in a storage that holds more, and in another order."""
    if tensor.ndim < 2:
        return torch.cat([tensor.new_zeros(3), tensor.flatten()])[3:].reshape(tensor.shape)
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("name", WRAPPINGS)
def test_the_tensors_are_found_in_what_is_around_them(name: str, tmp_path: Path, state: State, *, zipped: bool) -> None:
    path = tmp_path / "theirs.ckpt"
    torch.save(WRAPPINGS[name](state), path, _use_new_zipfile_serialization=zipped)
    found = foreign.read(path)
    assert found.spec.model == "unet"
    tolerance = {"half": 1e-3, "bfloat16": 1e-2}.get(name, 0.0)
    weight = found.state["down.0.0.conv.weight"]
    torch.testing.assert_close(weight, state["inc.double_conv.0.weight"], rtol=0, atol=tolerance)


def test_of_several_networks_one_is_asked_for(tmp_path: Path, state: State) -> None:
    """An average of weights beside the weights: which of them draws better masks, the file does not say."""
    path = tmp_path / "both.pth"
    average = {name: tensor + 1 for name, tensor in state.items()}
    torch.save({"model": state, "model_ema": average}, path)
    with pytest.raises(InvalidRequestError, match="holds several networks: 'model', 'model_ema'") as refused:
        foreign.read(path)
    assert refused.value.remedy == "Say which: --part NAME"
    taken = foreign.read(path, ImportOptions(part="model_ema")).state["down.0.0.conv.weight"]
    assert torch.equal(taken, average["inc.double_conv.0.weight"])
    torch.save({**prefixed(state, "model."), **prefixed(average, "ema_model.")}, path)
    with pytest.raises(InvalidRequestError, match="'ema_model', 'model'"):
        foreign.read(path)


def test_what_the_network_does_not_have_is_left_out_only_when_told(tmp_path: Path, state: State) -> None:
    path = tmp_path / "more.pth"
    torch.save({"state_dict": {**prefixed(state, "model."), "loss.weight": torch.ones(3)}}, path)
    with pytest.raises(InvalidFileError, match=r"1 tensors that it should not have: loss\.weight"):
        foreign.read(path)
    report = foreign.read(path, ImportOptions(force=True)).report
    assert report.left_over == ("loss.weight",)
    assert set(report.renamed) == set(state)


@pytest.mark.parametrize(
    "broken,says",
    [
        (lambda state: state.pop("up2.conv.double_conv.3.weight"), "lacks up.1.1.conv.weight"),
        (
            lambda state: state.update({"outc.conv.bias": torch.zeros(4)}),
            r"outc.conv.bias is \(4,\) where \(3,\) belongs",
        ),
        (lambda state: state.update({"outc.conv.bias": torch.full((3,), float("nan"))}), "holds NaN or infinity"),
        (
            lambda state: state.update({"inc.double_conv.0.weight": state["inc.double_conv.0.weight"][:, :1].clone()}),
            "takes 1 channels",
        ),
    ],
)
def test_a_network_that_is_not_whole_is_refused_with_the_tensor(
    tmp_path: Path, state: State, broken: Callable[[State], object], says: str
) -> None:
    broken(state)
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(InvalidFileError, match=says):
        foreign.read(tmp_path / "broken.pth")


def test_one_channel_is_a_sigmoid(tmp_path: Path) -> None:
    """An argmax over one channel would draw one class, whatever the network says."""
    network = theirs.with_statistics(theirs.MilesialUNet(1, 3, bilinear=False))
    torch.save(network.state_dict(), tmp_path / "one.pth")
    found = foreign.read(tmp_path / "one.pth")
    assert found.spec.classes == ("background", "foreground")
    x = torch.randn(1, 3, 32, 48)
    with torch.inference_mode():
        drawn = torch.sigmoid(network(x))[:, 0] > 0.5
        assert 0 < drawn.float().mean() < 1
        assert torch.equal(found.network()(x).argmax(1).bool(), drawn)


@pytest.mark.parametrize(
    "count,first,data", [(19, "road", "Cityscapes"), (21, "background", "PASCAL VOC"), (7, "class_0", "")]
)
def test_classes_are_guessed_by_their_count_and_said_to_be(tmp_path: Path, count: int, first: str, data: str) -> None:
    torch.save(theirs.MilesialUNet(count, 3, bilinear=True).state_dict(), tmp_path / "a.pth")
    found = foreign.read(tmp_path / "a.pth")
    assert found.spec.classes[0] == first
    assert found.report.classes_from == (f"a guess: {data} has {count} classes" if data else "their count alone")
    names = tuple(f"it {index}" for index in range(count))
    assert foreign.read(tmp_path / "a.pth", ImportOptions(classes=names)).spec.classes == names
    with pytest.raises(InvalidRequestError, match=f"3 classes were given, and the network draws {count}"):
        foreign.read(tmp_path / "a.pth", ImportOptions(classes=("a", "b", "c")))


STRANGERS = {
    "backbone.layer4.0.conv1.weight classifier.4.weight": "an FCN on ResNet",
    "cp.resnet.conv1.weight ffm.convblk.conv.weight": "a BiSeNet",
    "decode_head.linear_c.0.proj.weight": "a SegFormer",
    "stage2.0.branches.0.0.conv1.weight": "an HRNet",
    "model.0.conv.weight model.1.conv.weight": "a YOLO",
    "head.weight": "a classifier",
    "anything.weight": "a network unknown here",
}


@pytest.mark.parametrize("names", STRANGERS)
def test_another_network_is_named_for_what_it_is(tmp_path: Path, names: str) -> None:
    torch.save({name: torch.zeros(2, 2) for name in names.split()}, tmp_path / "other.pth")
    with pytest.raises(InvalidFileError) as refused:
        foreign.read(tmp_path / "other.pth")
    assert f"is {STRANGERS[names]}" in refused.value.what


# Hostile files

UNPACKED = 1_000_000


class Hostile:
    """Runs a command when it is unpickled by Python."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path("ran"),)  # type: ignore[return-value]


def _module(path: Path) -> None:
    torch.save(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1)), path)


def _module_inside(path: Path) -> None:
    torch.save({"epoch": 1, "model": torch.nn.Conv2d(3, 3, 1)}, path)


def _hostile(path: Path) -> None:
    torch.save({"state_dict": Hostile()}, path)


def _script(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/code/__torch__.py", "")
        archive.writestr("net/data.pkl", "")


def _bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(10_000_000))


def _npz_bomb(path: Path) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, a=np.zeros(UNPACKED))


def _objects(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.array([{}], dtype=object))


def _npz_of(shape: tuple[int, ...]) -> Callable[[Path], None]:
    """An array of that shape by its header, and of 64 bytes."""

    def write(path: Path) -> None:
        array = io.BytesIO()
        np.lib.format.write_array_header_1_0(array, {"descr": "<f4", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.npy", array.getvalue() + bytes(64))

    return write


def _pickled(value: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", value if isinstance(value, bytes) else pickle.dumps(value, 2))

    return write


def _huge_shape(path: Path) -> None:
    tensor = torch.zeros(1).expand(10**9, 10**3)
    torch.save({"inc.double_conv.0.weight": tensor, "a": tensor}, path)


def _beyond(path: Path) -> None:
    """A tensor whose strides reach further than its storage."""
    buffer = io.BytesIO()
    network = {name: tensor.clone() for name, tensor in theirs.MilesialUNet(3, 3, bilinear=True).state_dict().items()}
    torch.save(network, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            target.writestr(entry.filename, data[: len(data) // 2] if "/data/" in entry.filename else data)


def _nested(path: Path) -> None:
    _pickled(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")(path)


def _cyclic(path: Path) -> None:
    inner: dict[str, Any] = {"a": 1}
    inner["model"] = inner["state_dict"] = inner
    _pickled(inner)(path)


def _shared(path: Path) -> None:
    """Ten dictionaries, each a hundred times in the next: 10^20 when walked."""
    value: Any = {"a": 1}
    for _ in range(10):
        value = {f"k{index}": value for index in range(100)}
    _pickled(value)(path)


def _bytes(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def _pictures(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"1")


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a whole module": (_module, "holds a whole 'torch.nn.modules.container.Sequential'"),
    "a module in a dictionary": (_module_inside, "holds a whole 'torch.nn.modules.conv.Conv2d'"),
    "a command": (_hostile, "holds no weights"),
    "a script": (_script, "is a TorchScript archive"),
    "a compressed archive": (_bomb, "is compressed"),
    "an array bomb": (_npz_bomb, "unpacks to more than"),
    "an array of objects": (_objects, "is no array of numbers"),
    "an array that ends early": (_npz_of((3 * 10**9,)), "is no array of numbers"),
    "an array that no memory holds": (_npz_of((10**13,)), "is no array of numbers"),
    "a huge shape": (_huge_shape, "holds more than"),
    "a shape beyond its data": (_beyond, "reaches beyond its data"),
    "a memo of 2^32": (_pickled(b"\x80\x02Nr\xff\xff\xff\xff."), "holds no weights"),
    "a call of what is no class": (_pickled(b"\x80\x02NNR."), "calls what is no class"),
    "an extension": (_pickled(b"\x80\x02\x82\x01."), "uses EXT1"),
    "bytes that are not there": (_pickled(b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"."), "damaged"),
    "nested lists": (_nested, "holds no weights"),
    "a circle": (_cyclic, "holds no weights"),
    "shared dictionaries": (_shared, "holds no weights"),
    "a pickle of Python": (_bytes(pickle.dumps({"a": 1})), "not one that torch.save wrote"),
    "nothing": (_bytes(b""), "is empty"),
    "text": (_bytes(b"hello"), "is no file of weights"),
    "a header alone": (_bytes(struct.pack("<Q", 2) + b"{}"), "holds no weights"),
    "a ZIP archive of pictures": (_pictures, "without weights"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_and_nothing_is_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reading, "MOST_UNPACKED", UNPACKED)
    write, says = HOSTILE[name]
    write(Path("theirs.pth"))
    with pytest.raises(SegdeployError) as refused:
        foreign.read(Path("theirs.pth"))
    assert says in refused.value.what
    assert refused.value.exit_code == 3
    assert len(str(refused.value).splitlines()) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.pth"]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, state: State, *, zipped: bool) -> None:
    path = tmp_path / "cut.pth"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for share in (0.001, 0.01, 0.2, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(InvalidFileError):
            foreign.read(path)


def test_reading_imports_no_module_that_the_file_names(tmp_path: Path, state: State) -> None:
    """The classes beside the weights stay names."""
    torch.save({"state_dict": state, "meta": ConfigDict(cfg="x"), "args": argparse.Namespace(lr=1)}, tmp_path / "a.pth")
    weights = unwrapping.unwrap(reading.open_file(tmp_path / "a.pth"), tmp_path / "a.pth")
    assert weights.wrapping == ("state_dict",)
    assert weights.facts["args"].kind == "argparse.Namespace"
    assert weights.facts["meta"].items == {"cfg": "x"}
