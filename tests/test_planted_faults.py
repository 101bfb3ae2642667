"""Results that are wrong must not end with exit code 0: each fault is planted in all four networks, and seen caught."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import trained_origin
from onnx import TensorProto, helper, numpy_helper

import segdeploy
from segdeploy import ProofOptions, admission, artifact, claims, models, proving, signature, workspace
from segdeploy.checkpoints import checkpoint
from segdeploy.engines import BuildOptions
from segdeploy.errors import GateFailedError, InvalidFileError, InvalidRequestError, MissingRuntimeError
from segdeploy.making import ExportOptions
from segdeploy.proof import kit
from segdeploy.spec import SPEC_KEY, Precision

PHOTO = next((Path(__file__).parents[1] / "examples" / "nuclei" / "images").iterdir())
SIZE = (64, 64)
SIZES = {"segnet": (128, 128)}  # in smaller masks a pooling tie moves more than is spared


@pytest.fixture(scope="module", params=models.names())
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the float32 graph of a packaged network at 64x64, its proof and its kit."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        segdeploy.export(request.param, options=ExportOptions(size=SIZES.get(request.param, SIZE)))
    return folder


@pytest.fixture
def graph(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The graph in a copy of the folder, which is the working directory; nothing was proven here before."""
    shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    shutil.rmtree(signature.proofs_folder(), ignore_errors=True)
    monkeypatch.setattr(admission, "FIRST_USE_S", 600)  # the machine of the tests may be busy
    proving._kept_reference.cache_clear()  # noqa: SLF001 - what an earlier test drew
    (path,) = Path("export").glob("*.fp32.onnx")
    return path


def model_of(graph: Path) -> str:
    return graph.name.split(".")[0]


def forge(path: Path, change: Callable[[onnx.ModelProto], None], **claims: Any) -> None:  # noqa: ANN401 - JSON values
    """Change a graph, and its manifest so that all of it fits; the forger has no key."""
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString(deterministic=True))
    beside = artifact.manifest_path(path)
    manifest = json.loads(beside.read_text(encoding="utf-8"))
    manifest["sha256"] = artifact.sha256(path)
    manifest["certificate"].update(claims)
    beside.write_text(json.dumps(manifest), encoding="utf-8")


def nothing(_: onnx.ModelProto) -> None:
    """The graph stays as it is."""


def negated(model: onnx.ModelProto) -> None:
    """Every convolution weight with the other sign."""
    weights = {node.input[1] for node in model.graph.node if node.op_type in {"Conv", "ConvTranspose"}}
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))


def first_of_the_batch(model: onnx.ModelProto) -> None:
    """Every image of a batch gets the mask of the first one; one image alone is right."""
    graph = model.graph
    for node in graph.node:
        node.input[:] = ["images_of_one" if name == "images" else name for name in node.input]
    bounds = [numpy_helper.from_array(np.array([bound], np.int64), f"bound_{bound}") for bound in (0, 1)]
    graph.initializer.extend(bounds)
    added = [
        helper.make_node("Slice", ["images", "bound_0", "bound_1"], ["first"], "planted/Slice"),
        helper.make_node("Shape", ["images"], ["shape"], "planted/Shape"),
        helper.make_node("Cast", ["first"], ["first_int"], "planted/Cast", to=TensorProto.INT32),
        helper.make_node("Expand", ["first_int", "shape"], ["each_int"], "planted/Expand"),
        helper.make_node("Cast", ["each_int"], ["images_of_one"], "planted/Cast_2", to=TensorProto.UINT8),
    ]
    for node in reversed(added):
        graph.node.insert(0, node)


def infer(graph: Path) -> None:
    segdeploy.infer(PHOTO, model=graph, engine="ort:fp32", out="masks")


# The claim


def test_a_forged_claim_on_another_network_serves_no_mask(graph: Path) -> None:
    """All weights negated, and 9999 images typed into the manifest: the kit that lies beside it tells."""
    forge(graph, negated, images=9999)
    with pytest.raises(GateFailedError, match="does not draw PyTorch's masks"):
        infer(graph)
    assert not Path("masks").exists()
    kit.path_of(graph).unlink()
    shutil.rmtree(signature.proofs_folder())
    with pytest.raises(GateFailedError, match="does not draw PyTorch's masks"):
        infer(graph)
    assert not Path("masks").exists()


def test_a_forged_claim_enters_no_plan(graph: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    options = BuildOptions(compute_capability="8.9")
    forge(graph, negated, images=9999)
    with pytest.raises(GateFailedError, match="does not draw PyTorch's masks"):
        segdeploy.build(graph, engine="trt-rtx:fp32", options=options)
    assert not list(Path("engines").glob("*"))


def test_a_claim_that_was_typed_is_made_anew(graph: Path) -> None:
    """The graph is right and the manifest says too much: the plan's says what was checked."""
    pytest.importorskip("tensorrt_rtx")
    forge(graph, nothing, images=9999)
    plan = segdeploy.build(graph, engine="trt-rtx:fp32", options=BuildOptions(compute_capability="8.9"))
    assert plan.certificate is not None
    assert plan.certificate.images == workspace.PROOF_IMAGES
    assert kit.path_of(plan.path).is_file()


def test_a_kit_that_somebody_else_signed_proves_nothing(graph: Path) -> None:
    """Masks of the negated network in the kit beside it would prove that very network."""
    forge(graph, negated)
    content = bytearray(kit.path_of(graph).read_bytes())
    content[-30] ^= 1
    kit.path_of(graph).write_bytes(content)
    assert claims.kit_of(artifact.read(graph)) is None
    with pytest.raises(GateFailedError):
        infer(graph)


def test_another_network_than_the_checkpoints_is_told_by_its_spec(graph: Path) -> None:
    """Class names that changed places, in the graph and in its manifest: every mask is right, and every name wrong."""
    spec = dict(model_spec := json.loads(artifact.manifest_path(graph).read_text(encoding="utf-8"))["spec"])
    spec["classes"] = spec["classes"][::-1]
    swapped = dataclasses.replace(artifact.read(graph).spec, classes=tuple(spec["classes"]))

    def renamed(model: onnx.ModelProto) -> None:
        for entry in (entry for entry in model.metadata_props if entry.key == SPEC_KEY):
            entry.value = swapped.to_json()

    forge(graph, renamed)
    beside = artifact.manifest_path(graph)
    manifest = json.loads(beside.read_text(encoding="utf-8")) | {"spec": spec}
    beside.write_text(json.dumps(manifest), encoding="utf-8")
    assert model_spec != spec
    with pytest.raises(InvalidFileError, match="is not proven"):
        infer(graph)


# The batch


def test_a_graph_that_mixes_up_its_batch_is_refused(graph: Path) -> None:
    forge(graph, first_of_the_batch)
    with pytest.raises(GateFailedError, match="engine, batch 3"):
        infer(graph)
    found = segdeploy.parity(graph, engine="ort:fp32")
    passed = {stage.name: stage.passed for stage in found.stages}
    assert passed == {"graph": True, "engine": True, "engine, batch 3": False}


# The limits


def test_what_passes_under_relaxed_limits_alone_stays_refused(graph: Path) -> None:
    forge(graph, negated)
    relaxed = ProofOptions(min_agreement=0.0, max_drop=100.0, max_unexplained=1.0)
    found = segdeploy.parity(graph, engine="ort:fp32", options=relaxed)
    moved_by_ties = found.failing is not None and "pooling tie" in str(found.failing.reason)
    assert found.passed or moved_by_ties, "no option spares SegNet's pooling ties"
    kept = artifact.read(graph)
    assert kept.certificate_as_asked == found
    assert kept.certificate is not None
    assert not kept.certificate.passed
    with pytest.raises(GateFailedError):
        infer(graph)


# A proof that never ended


@pytest.fixture
def interrupted(graph: Path) -> Path:
    """Ctrl-C between the graph and its proof: the manifest claims nothing, and there is no kit yet."""
    unproven = dataclasses.replace(artifact.read(graph), certificate=None)
    artifact.write_manifest(unproven)
    for path in (signature.signature_path(graph), kit.path_of(graph)):
        path.unlink()
    return graph


def test_an_interrupted_proof_is_made_on_first_use(interrupted: Path) -> None:
    infer(interrupted)
    assert [mask.stem for mask in Path("masks").glob("*.png")] == [PHOTO.stem]
    (kept,) = claims.counting(artifact.read(interrupted))
    assert kept.proves


def test_what_nothing_here_can_prove_is_refused(interrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No kit, no PyTorch: exit 3, and the command that proves it."""

    def absent() -> None:
        raise MissingRuntimeError("this needs PyTorch.", "Install it.")

    monkeypatch.setattr("segdeploy.with_torch.torch_reference", absent)
    with pytest.raises(InvalidFileError, match="is not proven in ort") as refused:
        infer(interrupted)
    assert refused.value.exit_code == 3
    assert f"segdeploy parity --model {interrupted}" in refused.value.remedy
    assert "segdeploy trust " in refused.value.remedy


def test_a_kit_proves_where_there_is_no_pytorch(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another machine, with the key or after `trust`; without either the files are not enough."""

    def absent() -> None:
        raise MissingRuntimeError("this needs PyTorch.", "Install it.")

    monkeypatch.setattr("segdeploy.with_torch.torch_reference", absent)
    artifact.write_manifest(dataclasses.replace(artifact.read(graph), certificate=None))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(Path("elsewhere").absolute()))
    with pytest.raises(InvalidFileError, match="is not proven"):
        infer(graph)
    signature.trust(artifact.sha256(kit.path_of(graph)))
    infer(graph)
    (kept,) = claims.counting(artifact.read(graph))
    assert (kept.proves, kept.reference, kept.images) == (True, "proof kit", workspace.PROOF_IMAGES)


# Own weights


@pytest.fixture
def own(graph: Path) -> Callable[..., Path]:
    """Makes checkpoints/NAME.safetensors of the packaged network, changed, with images of its own or without."""
    name = model_of(graph)
    source = workspace.PACKAGED / f"{name}.safetensors"
    height, width = SIZES.get(name, SIZE)
    spec = dataclasses.replace(checkpoint.read(source).spec, height=height, width=width)
    path = Path("checkpoints") / f"{name}.safetensors"

    def write(change: Callable[[torch.Tensor], torch.Tensor], *, with_images: bool = True) -> Path:
        tensors = checkpoint.tensors(source)
        bias = next(key for key in reversed(tensors) if key.endswith("bias") and len(tensors[key]) == len(spec.classes))
        tensors[bias] = change(tensors[bias])
        path.parent.mkdir(exist_ok=True)
        origin = trained_origin(Path("validation"), path)
        if not with_images:
            shutil.rmtree("validation")
        checkpoint.save(path, tensors, spec, origin=origin)
        return path

    return write


def test_own_weights_need_images_of_their_own(own: Callable[..., Path], graph: Path) -> None:
    """The packaged images show cells: they prove nothing of a network that was trained on streets."""
    own(lambda bias: bias + 0.01, with_images=False)
    for command in (segdeploy.export, segdeploy.parity, segdeploy.bench):
        with pytest.raises(InvalidRequestError, match="own weights need images of their own"):
            command(model_of(graph))
    own(lambda bias: bias + 0.01)
    (made,) = segdeploy.export(model_of(graph))
    assert made.certificate is not None
    assert (made.certificate.images, made.certificate.proves) == (4, True)


def test_one_class_everywhere_is_inconclusive(own: Callable[..., Path], graph: Path) -> None:
    own(lambda bias: bias + torch.tensor([1e4, 0.0]))
    with pytest.raises(GateFailedError, match="it could not have failed: the reference draws 'background' in"):
        segdeploy.export(model_of(graph))
    with pytest.raises(GateFailedError, match="could not have failed"):
        infer(graph)
    allowed = ExportOptions(allow_inconclusive=True)
    (made,) = segdeploy.export(model_of(graph), options=allowed)
    assert made.certificate is not None
    assert (made.certificate.passed, made.certificate.proves) == (True, True)
    assert made.certificate.inconclusive is not None


def test_logits_that_are_not_finite_prove_nothing(own: Callable[..., Path], graph: Path) -> None:
    """NaN in the last bias: argmax gives one class everywhere, in PyTorch and in the graph alike."""
    own(lambda bias: bias + torch.tensor([0.0, float("nan")]))
    with pytest.raises(GateFailedError, match="from the layer '"):
        segdeploy.export(model_of(graph))
    with pytest.raises(GateFailedError):
        infer(graph)


def test_another_checkpoint_makes_another_graph_whatever_the_clocks_say(own: Callable[..., Path], graph: Path) -> None:
    """By its bytes: a machine whose clock runs ahead or behind changes nothing."""
    name, fp32 = model_of(graph), Precision.FP32
    path = own(lambda bias: bias + 0.01)
    first = segdeploy.export(name)[0].sha256
    assert workspace.current_graph(name, fp32, None) is not None
    own(lambda bias: bias - 0.01)
    for days in (-400, 400):
        when = path.stat().st_mtime + 86400 * days
        os.utime(path, (when, when))
        assert workspace.current_graph(name, fp32, None) is None
    with segdeploy.open(name, engine="ort:fp32"):
        assert artifact.read(graph).sha256 != first
    path.unlink()
    assert workspace.current_graph(name, fp32, None) is not None, "nothing here can tell"
