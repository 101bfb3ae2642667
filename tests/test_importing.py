"""From somebody's checkpoint to a proven engine, by a name of its own or in memory."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import foreign_networks as theirs
import pytest
import torch
from click.testing import CliRunner
from conftest import Run, photographs
from torch.nn import functional as F

import segdeploy
from segdeploy import Augmentation, TrainOptions, artifact, models, workspace
from segdeploy.benchmarking import BenchOptions
from segdeploy.checkpoints import checkpoint, foreign
from segdeploy.cli import cli
from segdeploy.errors import InvalidFileError, InvalidRequestError, SegdeployError
from segdeploy.making import ExportOptions
from segdeploy.timing.latency import Effort

CLASSES = 3


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: theirs.pth of a U-Net that divides images between its classes, and photos/images/."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = theirs.with_statistics(theirs.MilesialUNet(CLASSES, 3, bilinear=True))
    torch.save(network.state_dict(), tmp_path / "theirs.pth")
    photographs(tmp_path / "photos", *(f"images/{index}.png" for index in range(4)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_an_imported_network_goes_the_whole_way_by_its_name(folder: Path, run: Run) -> None:
    done = run("import", "theirs.pth", "--name", "street", "--size", "64x48", "--classes", "road, sky, car", "--json")
    assert done.code == 0, done.err
    said = done.json()
    assert said["checkpoint"] == "checkpoints/street.safetensors"
    assert said["spec"]["classes"] == ["road", "sky", "car"]
    assert said["keys"]["classes_from"] == "given"
    about = segdeploy.inspect("checkpoints/street.safetensors").artifact.origin.imported
    assert about is not None
    assert (about.sha256, about.left_over) == (artifact.sha256(folder / "theirs.pth"), 0)
    (graph,) = segdeploy.export("street", options=ExportOptions(data=Path("photos")))
    assert graph.path == Path("export/street.fp32.onnx")
    assert (graph.spec.height, graph.spec.width, graph.spec.mean, graph.spec.std) == (64, 48, (0, 0, 0), (1, 1, 1))
    assert segdeploy.parity("street", data="photos").proves
    report = segdeploy.infer("photos", model="street", engine="ort:fp32")
    assert (report.model, report.done) == ("street", 4)


@pytest.mark.slow
def test_the_report_is_printed_with_what_the_file_does_not_tell(folder: Path, run: Run) -> None:
    network = theirs.SemsegPspNet(CLASSES)
    torch.save({"state_dict": network.state_dict()}, folder / "psp.pth")
    done = run("import", "psp.pth", "--name", "scene")
    assert done.code == 0, done.err
    assert "semseg's PSPNet, a pspnet (" in done.out
    assert "unwrapped: state_dict" in done.out
    assert "first_dilation=stage, stride_in=3x3, corners=aligned (else: --option)" in done.out


@pytest.mark.slow
def test_foreign_weights_are_exported_in_memory(folder: Path) -> None:
    """Nothing is left in checkpoints/; what is asked later is answered from the file."""
    asked = ExportOptions(weights="theirs.pth", size=(64, 64), data=Path("photos"))
    (graph,) = segdeploy.export(options=asked)
    assert graph.path == Path("export/unet.fp32.onnx")
    assert not (folder / "checkpoints").exists()
    assert graph.origin.weights is not None
    assert graph.origin.weights.path == "../theirs.pth"
    assert segdeploy.parity("export/unet.fp32.onnx", data="photos").proves
    result = segdeploy.bench(
        "export/unet.fp32.onnx",
        options=BenchOptions(engines=("torch:fp32", "ort:fp32"), effort=Effort(runs=1), data=Path("photos")),
    )
    assert {subject.runtime for subject in result.subjects} == {"torch", "ort"}
    assert not workspace.is_stale(graph)
    shutil.copyfile(folder / "photos" / "images" / "0.png", folder / "theirs.pth")
    assert workspace.is_stale(graph)


@pytest.mark.slow
def test_foreign_weights_are_kept_under_a_name(folder: Path) -> None:
    asked = ExportOptions(weights="theirs.pth", name="street", size=(64, 64), data=Path("photos"))
    (graph,) = segdeploy.export(options=asked)
    assert graph.path == Path("export/street.fp32.onnx")
    assert (folder / "checkpoints" / "street.safetensors").is_file()
    with pytest.raises(InvalidRequestError, match="is there already"):
        segdeploy.export(options=asked)


@pytest.mark.usefixtures("folder")
def test_without_images_to_prove_on_nothing_is_exported() -> None:
    segdeploy.import_checkpoint("theirs.pth", name="street")
    with pytest.raises(InvalidRequestError, match="there are no images to prove") as refused:
        segdeploy.export("street")
    assert refused.value.remedy.endswith("--data DIR")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "arguments,code,what",
    [
        ("import theirs.pth --name unet", 2, "unet is one of the networks"),
        ("import theirs.pth --name a.b", 2, "'a.b' cannot be the name of a network"),
        ("import theirs.pth", 2, "Missing option '--name'"),
        ("import nothing.pth --name street", 2, "there is no file nothing.pth"),
        ("import photos/images/0.png --name street", 3, "photos/images/0.png is no file of weights"),
        ("import theirs.pth --name street --size 8x8", 2, "UNet takes at least 16x16 pixels"),
        ("import theirs.pth --name street --option colour=1", 2, "unet has no option colour"),
        ("import theirs.pth --name street --option up=transposed", 3, "lacks rise.0"),
        ("export --name street --model unet", 2, "--name is for the weights of --weights FILE"),
        ("export --weights theirs.pth --model segnet --data photos", 3, "holds a unet, not a segnet"),
    ],
)
def test_what_cannot_be_imported_writes_nothing(arguments: str, code: int, what: str) -> None:
    done = CliRunner().invoke(cli, arguments.split())
    error = done.exception
    assert isinstance(error, SegdeployError | SystemExit)
    found, said = (error.exit_code, error.what) if isinstance(error, SegdeployError) else (done.exit_code, done.output)
    assert found == code
    assert what in said
    assert not Path("checkpoints").exists()


@pytest.mark.usefixtures("folder")
def test_a_name_that_is_taken_is_kept_unless_told() -> None:
    first = segdeploy.import_checkpoint("theirs.pth", name="street")
    with pytest.raises(InvalidRequestError, match=r"checkpoints/street\.safetensors is there already"):
        segdeploy.import_checkpoint("theirs.pth", name="street")
    segdeploy.import_checkpoint("theirs.pth", name="street", overwrite=True)
    with pytest.raises(InvalidFileError, match="is a checkpoint of segdeploy already"):
        segdeploy.import_checkpoint(first.checkpoint, name="other")


def test_a_network_is_given_as_a_module_of_torch(folder: Path) -> None:
    segdeploy.import_checkpoint("theirs.pth", name="street")
    x = torch.randn(2, 3, 32, 48)
    with torch.inference_mode():
        logits = segdeploy.network("theirs.pth")(x)
        assert torch.equal(segdeploy.network(folder / "checkpoints" / "street.safetensors")(x), logits)
    assert logits.shape == (2, CLASSES, 32, 48)


# Encoders

ENCODERS: dict[str, Callable[[], torch.nn.Module]] = {
    **{f"resnet{depth}": lambda depth=depth: theirs.Classifier(depth) for depth in (18, 34, 50, 101)},  # type: ignore[misc]
    "vgg16": lambda: theirs.Vgg16(norm=False),
    "vgg16_bn": lambda: theirs.Vgg16(norm=True),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_gives_torchvisions_features(name: str, tmp_path: Path) -> None:
    classifier, path = theirs.with_statistics(ENCODERS[name]()), tmp_path / "encoder.pth"
    torch.save(classifier.state_dict(), path)
    with pytest.raises(InvalidFileError, match="the encoder of a network without what draws masks") as refused:
        foreign.read(path)
    assert "segdeploy train --model" in refused.value.remedy
    for model in ("segnet",) if name.startswith("vgg") else ("deeplabv3", "pspnet"):
        encoder = foreign.read_encoder(path, model, {})
        assert encoder.report.left_over
        assert all(each.startswith(("fc.", "classifier.")) for each in encoder.report.left_over)
        network = begun_with(model, encoder).eval()
        x = torch.randn(1, 3, 64, 96)
        with torch.inference_mode():
            if model == "segnet":
                features = vgg_features(network, x)
                expected = classifier.features[:-1](x)
            else:
                trunk = network.get_submodule("trunk")
                features = trunk.layer2(trunk.layer1(F.max_pool2d(trunk.stem(x), 3, 2, 1)))  # type: ignore[operator]
                stem = F.max_pool2d(F.relu(classifier.bn1(classifier.conv1(x))), 3, 2, 1)
                expected = classifier.layer2(classifier.layer1(stem))
        torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)


def begun_with(model: str, encoder: foreign.Encoder) -> torch.nn.Module:
    network = models.build(model, CLASSES, **encoder.variant)
    unexpected = network.load_state_dict(dict(encoder.state), strict=False).unexpected_keys
    assert unexpected == []
    return network


def vgg_features(network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    stages = list(network.get_submodule("encoder").children())
    for stage in stages[:-1]:
        x = F.max_pool2d(stage(x), 2)
    found: torch.Tensor = stages[-1](x)
    return found


def test_training_begins_with_an_encoder(tmp_path: Path, labelled: Path) -> None:
    classifier, path = theirs.with_statistics(theirs.Classifier(18)), tmp_path / "resnet18.pth"
    torch.save(classifier.state_dict(), path)
    options = TrainOptions(Augmentation((32, 32)), epochs=1, batch=3, learning_rate=1e-9, weights=str(path))
    best = segdeploy.train("pspnet", data=labelled, size=(32, 32), options=options, out=tmp_path / "out", name="own")
    made = checkpoint.read(best)
    assert made.spec.variant == {"depth": 18, "stem": "7x7", "multiplier": 0.125}
    assert made.origin.imported is not None
    assert made.origin.imported.sha256 == artifact.sha256(path)
    weight = checkpoint.tensors(best)["trunk.layer4.1.conv2.conv.weight"]
    torch.testing.assert_close(weight, classifier.layer4[1].conv2.weight, rtol=1e-4, atol=1e-6)
    resumed = dataclasses.replace(options, epochs=1)
    assert (
        segdeploy.train(
            "pspnet", data=labelled, size=(32, 32), options=resumed, out=tmp_path / "out", name="own", resume=True
        )
        == best
    )


def test_an_encoder_of_another_network_is_refused(tmp_path: Path, labelled: Path) -> None:
    torch.save(theirs.Classifier(18).state_dict(), tmp_path / "resnet18.pth")
    options = TrainOptions(Augmentation((32, 32)), epochs=1, batch=3, weights=str(tmp_path / "resnet18.pth"))
    with pytest.raises(InvalidRequestError, match="for deeplabv3 or pspnet, not for segnet"):
        segdeploy.train("segnet", data=labelled, size=(32, 32), options=options, out=tmp_path / "out")
    with pytest.raises(InvalidRequestError, match="has depth=18, and depth=50 was asked for"):
        segdeploy.train(
            "pspnet", data=labelled, size=(32, 32), variant={"depth": 50}, options=options, out=tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()
