"""Two lines for every error of the real command, whatever is wrong."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from command_line import BUILD, GRAPH, SMALL, assert_refused
from conftest import COMMAND, SPEC, Run, photographs
from PIL import Image

from segdeploy import artifact
from segdeploy.checkpoints import checkpoint


def spec_only(path: Path, **changes: object) -> Path:
    """A checkpoint whose header says anything at all, and which holds no tensors."""
    spec = json.dumps({**json.loads(SPEC.to_json()), **changes})
    header = json.dumps({"__metadata__": {"format": checkpoint.FORMAT, "spec": spec, "made_by": "{}"}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return path


@pytest.mark.parametrize(
    "arguments,code,what",
    [
        ("nothing", 2, "No such command 'nothing'"),
        ("--nothing", 2, "No such option '--nothing'"),
        ("infer", 2, "Missing argument 'FOLDER|IMAGE|GLOB|LIST.txt|URL|-...'"),
        ("export", 2, "Missing option '--model'"),
        ("train --model unet", 2, "Missing option '--data'"),
        ("infer photos --nothing", 2, "No such option '--nothing'"),
        ("infer photos --device gpu", 2, "'gpu' is not one of"),
        ("infer photos --model nothing", 2, "there is no model named 'nothing'"),
        ("export --model nothing", 2, "there is no model named 'nothing'"),
        ("parity --model nothing", 2, "there is no model named 'nothing'"),
        ("train --model nothing --data data", 2, "there is no model named 'nothing'"),
        ("infer photos --engine tpu:fp32", 2, "there is no runtime 'tpu'"),
        ("infer photos --write mask,picture", 2, "there is no output 'picture'"),
        ("infer photos --write ,", 2, "no kind of output was named"),
        ("infer photos --opacity 1.5", 2, "1.5 is not in the range"),
        ("infer photos --opacity nan", 2, "an opacity of nan cannot be"),
        ("infer photos --values labelIds", 2, "'labelIds' is not one of"),
        ("infer photos --opacity 0.3", 2, "--opacity is for overlay, side, of which none is written"),
        ("infer photos --values original --write svg", 2, "--values is for mask, npy, tiff, of which none is written"),
        (
            "infer photos --engine ort:fp32 --values original",
            2,
            "the 2 classes ground to thing are those of no data set",
        ),
        ("bench --engine fp64", 2, "there is no precision 'fp64'"),
        ("parity --engine :", 2, "there is no precision ''"),
        ("parity --min-agreement 2", 2, "2.0 is not in the range"),
        ("parity --max-drop -1", 2, "-1.0 is not in the range"),
        ("parity --bisect --engine torch:fp32", 2, "--bisect looks into graphs; torch runs a checkpoint."),
        ("bench --runs 0", 2, "0 is not in the range"),
        ("bench --batch -1", 2, "-1 is not in the range"),
        ("export --model unet --size 64", 2, "'64' is not HEIGHTxWIDTH"),
        ("export --model unet --size 0x64", 2, "'0x64' is not HEIGHTxWIDTH"),
        ("export --model unet --size 64x64x3", 2, "'64x64x3' is not HEIGHTxWIDTH"),
        ("export --model unet --size ²x²", 2, "'²x²' is not HEIGHTxWIDTH"),
        (f"export --model unet --size 1x{'9' * 5000}", 2, "is not HEIGHTxWIDTH"),
        ("export --model unet --size 60000x60000", 2, "the network size 60000x60000 is above 67,108,864 pixels"),
        ("export --model unet --size 8x8", 2, "UNet takes at least 16x16 pixels, not 8x8"),
        ("export --model unet --option multiplier", 2, "'multiplier' is not KEY=VALUE"),
        ("export --model unet --option multiplier=1", 2, "--option builds a new network"),
        ("export --model unet --weights random --option colour=1", 2, "unet has no option colour"),
        ("export --model unet --weights random --option multiplier=much", 2, "multiplier='much' is not a number"),
        ("export --model unet --weights random --option multiplier=0", 2, "multiplier 0 is not"),
        ("export --model unet --output masks", 2, "'masks' is not one of"),
        ("export --model unet --weights nothing.safetensors", 2, "there is no checkpoint nothing.safetensors"),
        ("export --model unet --weights photos", 2, "there is no checkpoint photos"),
        ("inspect nothing.safetensors", 2, "there is no checkpoint nothing.safetensors"),
        ("inspect nothing.onnx", 2, "there is no file nothing.onnx"),
        ("inspect photos", 2, "there is no file photos"),
        ("bench --model nothing.onnx", 2, "there is no file nothing.onnx"),
        ("eval --data nothing", 2, "there is no folder nothing"),
        ("eval --data photos", 2, "photos/images is missing or has no images"),
        ("eval --data unlabelled", 2, "unlabelled has no labels"),
        ("train --model unet --data unlabelled", 2, "unlabelled has no labels"),
        ("parity --data nothing", 2, "there is no folder nothing"),
        ("bench --data photos", 2, "photos/images is missing or has no images"),
        ("inspect text.safetensors", 3, "text.safetensors is not a safetensors file"),
        ("inspect text.onnx", 3, "text.onnx has no manifest (text.onnx.json) beside it"),
        ("inspect photos/a.jpg", 3, "photos/a.jpg has no manifest"),
        ("infer photos --model text.onnx", 3, "text.onnx has no manifest"),
        ("export --model unet --weights text.safetensors", 3, "text.safetensors is not a safetensors file"),
        ("export --model unet --weights segnet.safetensors", 3, "segnet.safetensors holds a segnet, not a unet"),
        ("export --model unet --weights empty.safetensors", 3, "empty.safetensors does not hold the network"),
        ("export --model unet --weights many.safetensors", 3, "257 classes; a class map holds 1 to 256"),
        ("infer photos --engine ort:fp32 --device cuda", 3, "cannot use CUDA here"),
        ("infer photos --engine torch:fp32 --device cuda", 3, "cannot use CUDA here"),
        ("bench --device cuda --runs 1", 3, "no runtime is usable here. trt on cuda: tensorrt is not installed"),
        ("bench --cuda opencl", 2, "'opencl' is not one of"),
        ("build --model unet", 2, "Missing option '--engine'"),
        ("build --model unet --engine fp16", 2, "'fp16' names no runtime to build for"),
        ("build --model unet --engine trt:fp32", 3, "tensorrt is not installed"),
        ("build --model unet --engine trt-rtx:fp32", 3, "no NVIDIA GPU can be used here"),
        ("build --model unet --engine trt-rtx:fp32 --compute-capability 9", 2, "'9' is no compute capability"),
        (
            "build --model unet --engine trt-rtx:fp32 --compute-capability 6.1",
            2,
            "builds nothing for compute capability 6.1",
        ),
        (f"{BUILD} --opt-batch 9", 2, "--opt-batch 9 is more than --max-batch 8"),
        (f"{BUILD} --timing-cache a", 2, "trt-rtx keeps no timing cache"),
        (f"{BUILD} --pin-timing-cache", 2, "--pin-timing-cache pins a file"),
        ("infer photos --engine trt-rtx:fp32", 3, "no NVIDIA GPU can be used here"),
        ("infer photos --model nothing.plan", 2, "there is no file nothing.plan"),
        ("trust nonsense", 2, "'nonsense' is no sha256"),
        (f"trust {'0' * 64} --revoke", 2, "is not trusted"),
        ("trust --revoke", 2, "--revoke takes a sha256"),
    ],
)
@pytest.mark.usefixtures("labelled")
def test_an_error_is_two_lines(run: Run, workspace: Path, arguments: str, code: int, what: str) -> None:
    photographs(workspace, "photos/a.jpg", "unlabelled/images/a.jpg")
    for name in ("text.onnx", "text.safetensors"):
        (workspace / name).write_text("This is no network at all, but it is long enough for a header.\n")
    spec_only(workspace / "empty.safetensors")
    spec_only(workspace / "segnet.safetensors", model="segnet")
    classes = [f"class_{index}" for index in range(257)]
    spec_only(workspace / "many.safetensors", classes=classes, colours=[(0, 0, 0)] * 257)
    assert_refused(run(*arguments.split(), CUDA_VISIBLE_DEVICES=""), code, what)
    assert not (workspace / "masks").exists()


def test_a_mask_with_a_strange_class_is_refused(run: Run, labelled: Path, workspace: Path) -> None:
    """Both where it is scored and where it is learned."""
    (labelled / "classes.csv").write_text("ground,0,0,0\nthing,255,196,0\n")
    Image.fromarray(np.full((60, 80), 7, np.uint8)).save(labelled / "masks/2.png")
    assert_refused(
        run("eval", "--engine", "ort:fp32", "--data", labelled),
        3,
        "2.png has class 7; the network has 2 classes and ignores 255",
    )
    assert (workspace / GRAPH).is_file()


@pytest.mark.slow
def test_training_on_a_strange_class_is_refused(run: Run, labelled: Path, workspace: Path) -> None:
    (labelled / "classes.csv").write_text("ground,0,0,0\nthing,255,196,0\n")
    Image.fromarray(np.full((60, 80), 7, np.uint8)).save(labelled / "masks/1.png")
    refused = run("train", "--model", "unet", "--data", labelled, *SMALL, "--batch", "3", "--out", workspace / "new")
    assert_refused(refused, 3, "1.png has class 7; the folder names 2 classes and ignores 255")


@pytest.mark.usefixtures("workspace")
def test_training_on_more_classes_than_a_byte_names_is_refused(run: Run, labelled: Path) -> None:
    (labelled / "classes.csv").write_text("".join(f"class {index},0,0,0\n" for index in range(257)))
    refused = run("train", "--model", "unet", "--data", labelled, *SMALL)
    assert_refused(refused, 2, "classes.csv names 257 classes; a class map holds 1 to 256")


def test_a_graph_that_is_none_is_refused_though_its_manifest_fits(run: Run, workspace: Path) -> None:
    photographs(workspace, "photos/a.jpg")
    (workspace / GRAPH).write_bytes(b"no graph, and yet what was signed for")
    manifest = workspace / f"{GRAPH}.json"
    fields = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**fields, "sha256": artifact.sha256(workspace / GRAPH)}))
    for model in ("unet", GRAPH):
        refused = run("infer", "photos", "--model", model, "--engine", "ort:fp32")
        assert_refused(refused, 3, f"{GRAPH} is no ONNX file")


@pytest.mark.usefixtures("workspace")
def test_the_last_of_two_options_of_one_key_holds(run: Run) -> None:
    """Whatever their kinds: text does not yield to a number."""
    asked = ("export", "--model", "unet", "--weights", "random", "--option", "multiplier=0.5")
    assert_refused(run(*asked, "--option", "multiplier=much"), 2, "multiplier='much' is not a number")


def test_a_full_stdout_is_an_error_like_any_other(workspace: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([COMMAND, "models"], cwd=workspace, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 3
    assert done.stderr.decode().splitlines()[0] == "Error: the system: No space left on device."
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    "arguments",
    ["--help", "models", "models --json", "infer photos --engine ort:fp32 --json", "bench --engine ort:fp32 --runs 1"],
)
def test_a_reader_who_leaves_hears_no_more(workspace: Path, arguments: str) -> None:
    """`segdeploy ... | head` closes the pipe before all is written."""
    photographs(workspace, "photos/a.jpg")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(
            [COMMAND, *arguments.split()], cwd=workspace, stdout=closed, stderr=subprocess.PIPE, check=False
        )
    assert done.stderr == b""
    assert done.returncode in {0, 1}
