"""The real command: light to start, two lines for every error, one JSON document for every result."""

import contextlib
import io
import json
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from conftest import COMMAND, SPEC, Outcome, Run, photographs
from PIL import Image
from rich.console import Console

from segdeploy import artifact
from segdeploy.checkpoints import checkpoint
from segdeploy.cli import _parity_table, cli

HELP_SECONDS = 0.5
HEAVY = {"torch", "onnx", "onnxscript", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "safetensors"}
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")
GRAPH = "export/unet.fp32.onnx"
BUILD = "build --model unet --engine trt-rtx:fp32 --compute-capability 8.9"
SMALL = ("--option", "multiplier=0.0625", "--size", "32x32")

COMMANDS = sorted(cli.commands)
SPEAKING_JSON = sorted(
    name for name, command in cli.commands.items() if "as_json" in {parameter.name for parameter in command.params}
)


def assert_refused(outcome: Outcome, code: int, what: str) -> None:
    """Two lines on stderr, the second with something to do; nothing on stdout."""
    assert (outcome.code, outcome.out) == (code, ""), outcome.err
    lines = outcome.err.split("\n")
    assert len(lines) == 3, outcome.err
    assert lines[0].startswith("Error: ")
    assert what in lines[0]
    assert len(lines[1]) > 10
    assert lines[2] == ""


def result(outcome: Outcome) -> Any:  # noqa: ANN401 - a JSON document
    """The one document on stdout of a command that went well."""
    assert (outcome.code, outcome.err) == (0, "")
    document = outcome.json()
    assert document["schema"] in {1, 2}
    return document


def spec_only(path: Path, **changes: object) -> Path:
    """A checkpoint whose header says anything at all, and which holds no tensors."""
    spec = json.dumps({**json.loads(SPEC.to_json()), **changes})
    header = json.dumps({"__metadata__": {"format": checkpoint.FORMAT, "spec": spec, "made_by": "{}"}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return path


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """What a command writes to a terminal, stdout and stderr together."""
    ours, theirs = pty.openpty()
    settings = {key: value for key, value in os.environ.items() if key not in {"NO_COLOR", "FORCE_COLOR"}}
    with subprocess.Popen(
        [COMMAND, *arguments], stdout=theirs, stderr=theirs, env=settings | {"TERM": "xterm-256color"} | environment
    ) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # a terminal that nobody writes to any more
            while part := os.read(ours, 65536):
                shown += part
    os.close(ours)
    assert process.returncode == 0
    return shown.decode()


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run: Run, command: str) -> None:
    shown = run(command, "--help")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.startswith(f"Usage: segdeploy {command} [OPTIONS]")
    assert "\\b" not in shown.out
    for parameter in cli.commands[command].params:
        if isinstance(parameter, click.Option):
            assert parameter.opts[0] in shown.out


def test_help_lists_every_command_and_opens_with_examples(run: Run) -> None:
    shown = run("--help")
    assert all(re.search(rf"^  {command} +\S", shown.out, re.MULTILINE) for command in COMMANDS)
    assert re.search(r"^ +segdeploy infer ./images  ", shown.out, re.MULTILINE), "the examples are not line by line"


def test_no_command_at_all_shows_the_help(run: Run) -> None:
    shown = run()
    assert (shown.code, shown.out) == (2, "")
    assert "\n  segdeploy infer" in shown.err.replace("    segdeploy", "  segdeploy")


def test_help_comes_at_once(run: Run) -> None:
    """The best of five: others may be at work on this machine."""

    def seconds() -> float:
        started = time.monotonic()
        assert run("--help").code == 0
        return time.monotonic() - started

    assert min(seconds() for _ in range(5)) < HELP_SECONDS


def test_help_imports_nothing_heavy() -> None:
    script = "from segdeploy.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", script, "--help"], capture_output=True, text=True, check=True
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "click" in imported
    assert imported & HEAVY == set()


def test_the_version_is_the_packages(run: Run) -> None:
    from segdeploy import __version__

    assert run("--version").out == f"segdeploy, version {__version__}\n"


# Errors


@pytest.mark.parametrize(
    "arguments,code,what",
    [
        ("nothing", 2, "No such command 'nothing'"),
        ("--nothing", 2, "No such option '--nothing'"),
        ("infer", 2, "Missing argument 'FOLDER|IMAGE|GLOB|LIST.txt...'"),
        ("export", 2, "Missing option '--model'"),
        ("train --model unet", 2, "Missing option '--data'"),
        ("infer photos --nothing", 2, "No such option '--nothing'"),
        ("infer photos --device gpu", 2, "'gpu' is not one of"),
        ("infer photos --model nothing", 2, "there is no model named 'nothing'"),
        ("export --model nothing", 2, "there is no model named 'nothing'"),
        ("parity --model nothing", 2, "there is no model named 'nothing'"),
        ("train --model nothing --data data", 2, "there is no model named 'nothing'"),
        ("infer photos --engine tpu:fp32", 2, "there is no runtime 'tpu'"),
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
        ("export --model unet --weights many.safetensors", 2, "257 classes; a class map holds 1 to 256"),
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
    assert_refused(refused, 3, "1.png has class 7; the network has 2 classes and ignores 255")


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


# Results


def export_fields(report: dict[str, Any]) -> None:
    (graph,) = report["graphs"]
    assert graph["path"] == GRAPH
    assert graph["sha256"] == artifact.sha256(Path(GRAPH))
    assert graph["parity"]["passed"] is True


def sensitivity_fields(report: dict[str, Any]) -> None:
    assert report["form"] == "unsigned"
    assert 0.5 < report["narrow"]["agreement"] <= 1
    assert {row["layer"].partition("/")[0] for row in report["layers"]} > {"down.0.0.conv", "rise.0", "classifier"}
    assert all(row["cost"] > 0 for row in report["layers"])


def parity_fields(report: dict[str, Any]) -> None:
    assert report["passed"] is True
    assert (report["schema"], report["departure"]) == (2, None)
    assert report["limits"] == {
        "min_agreement": 0.9999,
        "max_near_ties": 0.01,
        "max_pool_ties": 0.00002,
        "max_unexplained": 0.0,
        "max_drop": 0.05,
    }
    assert [stage["name"] for stage in report["stages"]] == ["graph", "engine"]
    for stage in report["stages"]:
        assert 0.9999 <= stage["agreement"] <= 1
        assert 0 <= stage["near_ties"] < 0.001
        assert abs(stage["miou_change"]) < 0.1
        assert set(stage["class_agreement"]) == set(SPEC.classes)
        assert len(stage["worst_images"]) <= 3


def bench_fields(report: dict[str, Any]) -> None:
    assert report["machine"]["processor"]
    assert [row["level"] for row in report["rows"]] == ["host", "image_to_mask"]
    for row in report["rows"]:
        facts = {key: row[key] for key in ("model", "runtime", "precision", "delivered", "device", "height", "width")}
        assert facts == {
            "model": "unet",
            "runtime": "ort",
            "precision": "fp32",
            "delivered": "fp32",
            "device": "cpu",
            "height": 64,
            "width": 64,
        }
        assert row["batch"] == 2
        assert row["sha256"] == artifact.sha256(Path(GRAPH))
        spread = [row["latency_ms"][key] for key in ("min", "median", "p90", "p95", "p99")]
        assert 0 < spread[0] <= row["latency_ms"]["mean"]
        assert spread == sorted(spread)
        assert row["images_per_s"] == pytest.approx(2000 / row["latency_ms"]["median"])
        assert 0 < row["miou"] < 1
        assert row["agreement"] > 0.9999
        assert row["memory"]["host_peak_mb"] > 1


def eval_fields(report: dict[str, Any]) -> None:
    assert set(report["classes"]) == set(SPEC.classes)
    assert report["miou"] == pytest.approx(np.mean(list(report["classes"].values())))
    assert 0 < report["pixel_accuracy"] < 1
    assert report["images"] == 3


def infer_fields(report: dict[str, Any]) -> None:
    assert (report["done"], report["skipped"], report["failed"]) == (6, 0, [])
    assert {"seconds", "images_per_s", "cpu_ms_per_image"} <= set(report)


def inspect_fields(report: dict[str, Any]) -> None:
    assert (report["kind"], report["precision"], report["spec"]["model"]) == ("graph", "fp32", "unet")
    assert report["sha256"] == artifact.sha256(Path(GRAPH))


def models_fields(report: dict[str, Any]) -> None:
    assert [model["name"] for model in report["models"]] == ["deeplabv3", "pspnet", "segnet", "unet"]
    weights = report["models"][-1]["weights"][0]
    assert (weights["kind"], weights["path"]) == ("file", "checkpoints/unet.safetensors")


def doctor_fields(report: dict[str, Any]) -> None:
    assert report["clash"] is False
    assert {"engine ort", "engine torch"} <= {check["name"] for check in report["checks"]}
    assert all(check["remedy"] for check in report["checks"] if not check["usable"])
    assert [each["runtime"] for each in report["order"] if each["usable"]][-2:] == ["ort", "ov"]
    assert all(each["usable"] or each["reason"] for each in report["order"])


def report_fields(report: dict[str, Any]) -> None:
    assert (report["path"], report["subjects"]) == ("report.html", [{"document": "result.json", "id": "a"}])
    assert report["size_mb"] == Path("report.html").stat().st_size / 1e6


@pytest.fixture
def _result(workspace: Path) -> None:
    """The least that `bench --save` could have written."""
    row = {"subject": "a", "level": "host", "batch": 1, "latency_ms": {"median": 1.0}}
    subject = {"id": "a", "model": "unet", "engine": "ort:fp32"}
    document = {"schema": 2, "kind": "bench", "subjects": [subject], "rows": [row]}
    (workspace / "result.json").write_text(json.dumps(document))


def build_fields(report: dict[str, Any]) -> None:
    assert report["path"] == "engines/unet.trt-rtx.fp32.cc89.plan"
    assert report["made_by"]["typed"]["work"] == {"fp32": 1.0}


def trust_fields(report: dict[str, Any]) -> None:
    assert report["trusted"] == {}


def train_fields(report: dict[str, Any]) -> None:
    assert report["checkpoint"] == "checkpoints/unet.safetensors"
    assert report["epoch"] == 1
    assert 0 <= report["val_miou"] <= 1


@pytest.mark.parametrize(
    "arguments,fields",
    [
        pytest.param("train --model unet --data data --batch 3 --epochs 1", train_fields, marks=pytest.mark.slow),
        pytest.param("export --model unet --data data", export_fields, marks=pytest.mark.slow),
        ("parity --data data --engine ort:fp32", parity_fields),
        ("bench --data data --runs 3 --batch 2 --engine ort:fp32", bench_fields),
        ("report result.json", report_fields),
        ("sensitivity --data data", sensitivity_fields),
        ("eval --data data --engine ort:fp32", eval_fields),
        ("infer data/images --engine ort:fp32", infer_fields),
        (f"inspect {GRAPH}", inspect_fields),
        (BUILD, build_fields),
        ("trust", trust_fields),
        ("models", models_fields),
        ("doctor", doctor_fields),
    ],
    ids=lambda value: value.partition(" ")[0] if isinstance(value, str) else "",
)
@pytest.mark.usefixtures("labelled", "workspace", "_result")
def test_json_is_one_document_with_what_was_asked(
    run: Run, arguments: str, fields: Callable[[dict[str, Any]], None]
) -> None:
    command, *others = arguments.split()
    others += SMALL if command == "train" else []
    done = run(command, *others, "--json")
    if command == "train":  # a line for each epoch, for the log
        assert done.err.startswith("epoch 1/1  loss ")
        done = Outcome(done.code, done.out, "")
    fields(result(done))


def test_every_command_that_speaks_json_is_tested(request: pytest.FixtureRequest) -> None:
    """A new command takes its place in the table above."""
    ours = request.node.parent.collect()
    tested = {test.callspec.id.partition("-")[0] for test in ours if test.name.startswith("test_json_is_one_document")}
    assert sorted(tested) == SPEAKING_JSON


@pytest.mark.parametrize(
    "arguments,shown",
    [
        ("parity --data data --engine ort:fp32", "proven: unet on 3 images, to the engine"),
        ("parity --data data --engine ort:fp32", "max pool ties 0.00002, max unexplained 0, "),
        ("parity --data data --engine ort:fp32 --max-drop 3", "max drop 3\n"),
        ("parity --data data --engine ort:fp32 --bisect", "engine, bisected on 0.png: All 23 layers, each given what"),
        ("bench --runs 2 --engine ort:fp32", "2 interleaved runs"),
        ("eval --data data --engine ort:fp32", "unet in ort, 3 images: mIoU 0."),
        ("infer data/images --engine ort:fp32", "6 done, 0 failed, 0 skipped (no images by name): masks"),
        (f"inspect {GRAPH}", "kind: graph"),
        ("inspect checkpoints/unet.safetensors", "kind: checkpoint"),
        ("models", "weights: file checkpoints/unet.safetensors (no mIoU)"),
        (BUILD, "engines/unet.trt-rtx.fp32.cc89.plan"),
        ("trust", "No plan from elsewhere is trusted."),
        ("doctor", "ov on cpu: usable"),
    ],
)
@pytest.mark.usefixtures("labelled", "workspace")
def test_without_a_terminal_there_is_the_result_alone(run: Run, arguments: str, shown: str) -> None:
    """No bars, no colours, whatever a build server asks for."""
    done = run(*arguments.split(), FORCE_COLOR="1", TERM="xterm-256color")
    assert (done.code, done.err) == (0, "")
    assert shown in done.out


def test_the_table_of_a_proof_fits_a_terminal() -> None:
    """Of 120 columns, with the longest runtime and every stage failed: a cut number is none."""
    shares = dict.fromkeys(("agreement", "boundary_agreement", "interior_agreement", "near_ties", "unexplained"), 1.0)
    scores = {"passed": False, "boundary_f1": 0.9, "miou_change": -12.3}
    stage = {"runtime": "trt-rtx", "device": "cuda", **scores, **shares}
    names = ["fp32 graph", "graph", "engine"]
    shown = io.StringIO()
    report = {"stages": [{"name": name, **stage} for name in names]}
    Console(file=shown, width=120).print(_parity_table(report))
    lines = [line.strip() for line in shown.getvalue().splitlines() if line.strip()]
    assert [line.split("  ")[0].strip() for line in lines[2:]] == names
    for line in lines[2:]:
        assert line.count("100.0000%") == len(shares)
        assert line.endswith("FAILED")
        assert "-12.3000" in line


@pytest.mark.usefixtures("workspace")
def test_a_terminal_has_bars_in_colour() -> None:
    shown = on_a_terminal("bench", "--runs", "2")
    assert "Timing batch 1" in shown
    assert COLOUR.search(shown)


@pytest.mark.usefixtures("workspace")
def test_no_color_is_respected() -> None:
    shown = on_a_terminal("bench", "--runs", "2", NO_COLOR="1")
    assert "Timing batch 1" in shown
    assert COLOUR.search(shown) is None
