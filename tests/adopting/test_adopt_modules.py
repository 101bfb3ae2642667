"""A torch module draws the same masks in its deployed form, whatever form it came in, or is refused with the reason."""

import dataclasses
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch_networks as networks
from conftest import INT8_SATURATES
from foreign_graphs import noise
from rtx_builder import build_plan
from torch import Tensor, nn
from torch_networks import built

import segdeploy
from segdeploy import artifact, workspace
from segdeploy.adopting.options import AdoptOptions
from segdeploy.errors import GateFailedError, InvalidFileError, InvalidRequestError, SegdeployError
from segdeploy.making import ExportOptions
from segdeploy.spec import Precision
from segdeploy.torch_modules import exporting
from segdeploy.torch_modules.outputs import Named

SIZE = (32, 48)
ASKED = AdoptOptions(size=SIZE, preset="imagenet")
UNFIT = r"missing .*body\.0\.weight.*left over .*tail.*another shape .*head"
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
CODE = """
import sys
sys.path.insert(0, {folder!r})
import torch_networks


def build():
    return torch_networks.Small()


number = 3


def fails():
    raise OSError("no configuration")
"""


@pytest.fixture
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module in the user's folder, which nobody has imported before."""
    monkeypatch.chdir(tmp_path)
    Path("my_network.py").write_text(CODE.format(folder=str(Path(__file__).parent)))
    yield "my_network"
    sys.modules.pop("my_network", None)


def with_images(**given: object) -> AdoptOptions:
    """Options with a folder of images to prove on."""
    data = Path("data") if Path("data").exists() else noise(Path("data"), 4)
    return dataclasses.replace(ASKED, data=data, **given)  # type: ignore[arg-type] # fields of the options


@pytest.mark.parametrize("kind", [networks.SegFormerLike, networks.DeepLabV3Plus, networks.LiteRASPP])
@pytest.mark.usefixtures("_here")
def test_a_module_in_python_is_adopted_proven_and_quantized(kind: type[nn.Module]) -> None:
    """With attention, depthwise convolutions, squeeze-and-excite; later proofs find it beside the graph.

    Attention's products stay in float32, and say so; TensorRT-RTX builds a plan of the signed form.
    """
    module = built(kind)
    found = segdeploy.adopt(module, name="mine", options=with_images())
    proof, foreign = found.graph.certificate, found.graph.origin.foreign
    assert proof is not None
    assert foreign is not None
    assert (proof.reference, proof.proves, proof.images) == ("PyTorch", True, 4)
    assert proof.batches == {1, 3}
    assert (foreign.kind, foreign.path) == ("torch.export", "mine.original.pt2")
    assert module.training  # it is the user's: a copy was adopted
    assert segdeploy.parity("mine", engine="ort:fp32").proves
    # Where bytes are summed inexactly, the unsigned form of random weights on noise is outside any budget.
    forms = ("signed",) if INT8_SATURATES else ("signed", "unsigned")
    spared = ExportOptions(calibrate=Path("data"), min_agreement=0.65, allow_inconclusive=True)
    made = segdeploy.export("mine", precision="fp16", options=spared)
    made += segdeploy.export("mine", precision="int8", options=dataclasses.replace(spared, forms=forms))
    for graph in made:
        assert graph.certificate is not None
        assert graph.certificate.proves
        assert graph.low_precision is not None
        assert graph.low_precision.low_share >= 0.5
        assert graph.form != "signed" or build_plan(graph.path)
        products = [why for why in graph.low_precision.in_float.values() if why == "both of its matrices are computed"]
        assert bool(products) == (kind is networks.SegFormerLike and graph.precision is Precision.INT8)


@pytest.mark.usefixtures("_here")
def test_where_too_much_would_stay_in_float32_nothing_is_written_and_the_layers_are_named() -> None:
    """Random weights on noise do not keep to fp16's budget of 99.9 %."""
    segdeploy.adopt(built(networks.LiteRASPP), name="mine", options=with_images())
    with pytest.raises(GateFailedError, match=r"only .* of all multiply-adds would be in fp16.* would stay "):
        segdeploy.export("mine", precision="fp16", options=ExportOptions(calibrate=Path("data")))
    assert not Path("export/mine.fp16.onnx").exists()


@pytest.mark.usefixtures("_here")
def test_a_graph_of_half_precision_is_proven_against_the_module_that_was_kept() -> None:
    segdeploy.adopt(built(networks.Small), name="mine", options=with_images())
    (half,) = segdeploy.export("mine", precision="fp16")
    assert half.certificate is not None
    assert half.certificate.proves
    assert half.certificate.reference == "PyTorch"


@pytest.mark.usefixtures("_here")
def test_the_reference_is_the_module_by_its_own_definition() -> None:
    """Written here once more: (pixel / 255 - mean) / deviation, the largest logit wins."""
    module = built(networks.Small).eval()
    graph = segdeploy.adopt(module, name="mine", options=with_images()).graph
    images = np.random.default_rng(3).integers(0, 256, (3, *SIZE, 3), np.uint8)
    given = ((images / 255 - MEAN) / DEVIATION).transpose(0, 3, 1, 2).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(given)).argmax(1).numpy()
    with segdeploy.open("mine", engine="ort:fp32") as engine:
        drawn = engine.classify(images)
    assert (drawn != expected).mean() < 1e-4
    layers = {node.name for node in onnx.load(graph.path).graph.node}
    assert "head/Conv" in layers  # as the module calls it
    assert graph.spec.classes == tuple(f"class {index}" for index in range(networks.CLASSES))


def saved(form: str) -> str | Path:
    """A module in one of the forms that people keep theirs in; its file is at `SIZE`."""
    module, images = built(networks.Small).eval(), torch.zeros(1, 3, *SIZE)
    if form == "program":
        torch.export.save(torch.export.export(module, (images,)), "theirs.pt2")
        return Path("theirs.pt2")
    with warnings.catch_warnings(action="ignore"):  # torch's own deprecation
        made = torch.jit.script(module) if form == "script" else torch.jit.trace(module, images)  # type: ignore[no-untyped-call] # torch's
        torch.jit.save(made, "theirs.pt")
    return "theirs.pt"


@pytest.mark.parametrize(
    "form, kind", [("program", "torch.export"), ("script", "TorchScript"), ("trace", "TorchScript")]
)
@pytest.mark.usefixtures("_here")
def test_a_module_in_a_file_is_compared_with_that_file(form: str, kind: str) -> None:
    """Nothing is kept beside the graph; another file there is another network."""
    path = saved(form)
    graph = segdeploy.adopt(path, name="mine", options=with_images()).graph
    foreign = graph.origin.foreign
    assert foreign is not None
    assert (foreign.kind, foreign.path) == (kind, f"../{path}")
    assert graph.certificate is not None
    assert graph.certificate.proves
    assert graph.certificate.batches == {1, 3}
    assert not (workspace.EXPORTS / "mine.original.pt2").exists()
    assert not workspace.is_stale(graph)
    Path(path).write_bytes(Path(path).read_bytes() + b"\0")
    assert workspace.is_stale(graph)
    with pytest.raises(InvalidFileError, match="no longer the file"):
        workspace.original_of(graph)


def test_code_with_a_file_of_weights_is_adopted(code: str) -> None:
    """The customary wrappings are looked through; other weights there make the graph stale."""
    module = built(networks.Small)
    weights = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": weights, "optimizer": {}}, "weights.pth")
    options = with_images(weights=Path("weights.pth"))
    graph = segdeploy.adopt(f"{code}:build", name="mine", options=options).graph
    assert graph.certificate is not None
    assert graph.certificate.proves
    foreign = graph.origin.foreign
    assert foreign is not None
    assert foreign.built_from is not None
    assert (foreign.built_from.named, foreign.built_from.path) == ("my_network:build", "../weights.pth")
    kept = torch.export.load("export/mine.original.pt2").state_dict
    torch.testing.assert_close(kept["module.head.weight"], module.get_parameter("head.weight"))
    torch.save({"state_dict": {name: tensor * 2 for name, tensor in weights.items()}}, "weights.pth")
    assert workspace.current_graph("mine", Precision.FP32, None) is None


# What others save in folders


class Library:
    """The part of transformers and of segmentation_models.pytorch that is called."""

    AutoModelForSemanticSegmentation: "Library"

    def __init__(self) -> None:
        self.asked: dict[str, object] = {}
        self.AutoModelForSemanticSegmentation = self

    def from_pretrained(self, folder: str, **given: object) -> nn.Module:
        self.asked = {"folder": folder, **given}
        return built(networks.Small)


def folder(**config: object) -> Path:
    path = Path("theirs")
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    (path / "model.safetensors").write_bytes(b"")
    return path


@pytest.mark.usefixtures("_here")
def test_a_folder_of_transformers_says_its_preprocessing_size_and_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    monkeypatch.setitem(sys.modules, "transformers", library)
    names = {str(index): f"thing {index}" for index in range(networks.CLASSES)}
    path = folder(model_type="segformer", id2label=names)
    about = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": SIZE[0], "width": SIZE[1]}}
    (path / "preprocessor_config.json").write_text(json.dumps(about))
    found = segdeploy.adopt(path, name="mine", options=AdoptOptions())
    assert library.asked == {
        "folder": str(path),
        "trust_remote_code": False,
        "local_files_only": True,
        "use_safetensors": True,
    }
    assert found.graph.spec.classes == tuple(names.values())
    assert (found.graph.spec.height, found.graph.spec.width) == SIZE
    assert "preprocessor_config.json" in found.source


@pytest.mark.usefixtures("_here")
def test_a_folder_of_segmentation_models_is_built_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", library)
    path = folder(_model_class="Segformer", classes=networks.CLASSES)
    found = segdeploy.adopt(path, name="mine", options=ASKED)
    assert library.asked == {"folder": str(path)}
    assert len(found.graph.spec.classes) == networks.CLASSES


@pytest.mark.parametrize(
    "config, remedy",
    [
        ({"model_type": "segformer"}, "pip install transformers"),
        ({"_model_class": "Unet"}, "pip install segmentation-models-pytorch"),
        ({"model_type": "segformer", "auto_map": {"AutoModel": "x.y"}}, "package.module:build"),
        ({"classes": 3}, "package.module:build"),
    ],
)
@pytest.mark.usefixtures("_here")
def test_a_folder_that_cannot_be_built_says_why(
    config: dict[str, object], remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the library, or where code that lies in the folder would have to run."""
    for name in ("transformers", "segmentation_models_pytorch"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SegdeployError) as refused:
        segdeploy.adopt(folder(**config), name="mine", options=ASKED)
    assert remedy in refused.value.remedy
    assert refused.value.exit_code == 3


# Planted faults


@pytest.mark.parametrize(
    "kind, error, says",
    [
        (networks.Dropping, InvalidFileError, "something else every time"),
        (networks.Mixing, InvalidFileError, "mixes the images of a batch"),
        (networks.Reordering, InvalidFileError, "mixes the images of a batch"),
        (networks.NotANumber, GateFailedError, "not finite .* from the module"),
        (networks.Deciding, InvalidFileError, "cannot trace Deciding, in the module itself"),
        (networks.WithoutOnnx, InvalidFileError, r"linalg_inv\S* of its module 'inverse'"),
    ],
)
@pytest.mark.usefixtures("_here")
def test_a_planted_fault_in_a_module_is_found(kind: type[nn.Module], error: type[SegdeployError], says: str) -> None:
    """Exit code 3, or 4 where it computes no numbers; nothing is written."""
    with pytest.raises(error, match=says):
        segdeploy.adopt(built(kind), name="mine", options=ASKED)
    assert not workspace.EXPORTS.exists()


@pytest.mark.usefixtures("_here")
def test_a_size_that_a_module_cannot_take_is_answered_with_one_that_it_can() -> None:
    with pytest.raises(InvalidRequestError, match="cannot take 30x44") as refused:
        segdeploy.adopt(built(networks.OnlyEights), name="mine", options=dataclasses.replace(ASKED, size=(30, 44)))
    assert "--size 32x48" in refused.value.remedy
    with pytest.raises(InvalidRequestError, match="at which size"):
        segdeploy.adopt(built(networks.Small), name="mine", options=AdoptOptions(preset="imagenet"))


def with_other_weights(content: bytes) -> bytes:
    model = onnx.load_from_string(content)
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 4:
            values = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values[::-1].copy(), tensor.name))
    return bytes(model.SerializeToString())


@pytest.mark.usefixtures("_here")
def test_a_fault_of_the_exporter_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module is the reference, not the graph that was made of it."""
    real = exporting.exported

    def faulty(*given: object) -> exporting.Exported:
        found = real(*given)  # type: ignore[arg-type] # as it was called
        return dataclasses.replace(found, onnx=with_other_weights(found.onnx))

    monkeypatch.setattr(exporting, "exported", faulty)
    with pytest.raises(InvalidFileError, match="draws other masks"):
        segdeploy.adopt(built(networks.Small), name="mine", options=ASKED)
    assert not workspace.EXPORTS.exists()


@pytest.mark.usefixtures("_here")
def test_a_program_that_draws_other_masks_than_its_module_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What later proofs run has to be the module itself."""
    real = exporting.exported
    other = real(networks_named(built(networks.Small), 2.0), torch.zeros(1, 3, *SIZE), "other")

    def faulty(*given: object) -> exporting.Exported:
        return dataclasses.replace(real(*given), program=other.program)  # type: ignore[arg-type] # as it was called

    monkeypatch.setattr(exporting, "exported", faulty)
    with pytest.raises(GateFailedError, match="draws other masks than the module"):
        segdeploy.adopt(built(networks.Small), name="mine", options=with_images())
    assert list(workspace.EXPORTS.iterdir()) == []


def networks_named(module: nn.Module, factor: float) -> Named:
    with torch.no_grad():
        module.get_parameter("head.bias").add_(torch.arange(networks.CLASSES) * factor)
    return Named(module.eval())


@pytest.mark.usefixtures("_here")
def test_a_graph_or_a_module_that_was_changed_afterwards_is_found() -> None:
    graph = segdeploy.adopt(built(networks.Small), name="mine", options=with_images()).graph
    kept = workspace.original_of(graph)
    graph.path.write_bytes(with_other_weights(graph.path.read_bytes()))
    artifact.write_manifest(dataclasses.replace(graph, sha256=artifact.sha256(graph.path), certificate=None))
    assert not segdeploy.parity("mine", engine="ort:fp32").passed
    kept.write_bytes(kept.read_bytes() + b"\0")
    with pytest.raises(InvalidFileError, match="no longer the file"):
        segdeploy.parity(str(graph.path), engine="ort:fp32", data="data")


@pytest.mark.parametrize(
    "entry, error, says",
    [
        ("nowhere:build", InvalidRequestError, "cannot be imported"),
        ("my_network:nothing", InvalidRequestError, "cannot be imported"),
        ("my_network:number", InvalidRequestError, "gives a int"),
        ("my_network:fails", InvalidFileError, "no configuration"),
    ],
)
def test_code_that_builds_no_module_says_why(code: str, entry: str, error: type[SegdeployError], says: str) -> None:
    assert code in sys.modules or Path(f"{code}.py").is_file()
    with pytest.raises(error, match=says):
        segdeploy.adopt(entry, name="mine", options=ASKED)


def test_weights_of_another_network_are_refused_with_the_names(code: str) -> None:
    torch.save({"head.weight": torch.zeros(2, 8, 1, 1), "tail": torch.zeros(3)}, "weights.pth")
    with pytest.raises(InvalidFileError, match=UNFIT) as it:
        segdeploy.adopt(f"{code}:build", name="mine", options=dataclasses.replace(ASKED, weights=Path("weights.pth")))
    assert "as it was trained" in it.value.remedy


@pytest.mark.usefixtures("_here")
def test_what_holds_no_network_is_refused() -> None:
    """A state dict, a whole pickled module, no module at all, weights for a file."""
    torch.save(built(networks.Small).state_dict(), "weights.pth")
    torch.save(built(networks.Small), "whole.pt")
    for path in ("weights.pth", "whole.pt"):
        with pytest.raises(InvalidFileError, match="no network without its code"):
            segdeploy.adopt(path, name="mine", options=ASKED)
    with pytest.raises(InvalidRequestError, match="is no network"):
        segdeploy.adopt(3, name="mine", options=ASKED)  # type: ignore[arg-type] # the fault
    with pytest.raises(InvalidRequestError, match="--weights"):
        segdeploy.adopt("x.onnx", name="mine", options=dataclasses.replace(ASKED, weights=Path("weights.pth")))


@pytest.mark.usefixtures("_here")
def test_a_module_in_half_precision_is_taken_in_float32_and_said_so() -> None:
    found = segdeploy.adopt(built(networks.Small).half(), name="mine", options=with_images())
    assert found.graph.certificate is not None
    assert found.graph.certificate.proves
    assert any("float16" in note for note in found.notes)


class Grey(networks.Small):
    """Takes one channel, gives a tuple: the mask first, then a coarser one for training."""

    def __init__(self) -> None:
        super().__init__()
        self.body[0] = nn.Conv2d(1, 8, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override] # another output
        found = super().forward(x)
        return found, found[:, :, ::2, ::2]


@pytest.mark.usefixtures("_here")
def test_a_module_of_one_channel_with_several_outputs() -> None:
    found = segdeploy.adopt(built(Grey), name="mine", options=with_images())
    foreign = found.graph.origin.foreign
    assert foreign is not None
    assert (foreign.reading.output, foreign.reading.preprocessing.channels) == ("0", "grey")
    assert found.graph.certificate is not None
    assert found.graph.certificate.proves
