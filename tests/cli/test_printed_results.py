"""What the real command prints: one JSON document, or text for people and logs."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import BUILD, GRAPH, HEADER, SMALL
from conftest import SPEC, Outcome, Run
from foreign_networks import MilesialUNet

from segdeploy import artifact
from segdeploy.cli import commands


def result(outcome: Outcome) -> Any:  # noqa: ANN401 - a JSON document
    """The one document on stdout of a command that went well; stderr says at most what its data hold."""
    assert outcome.code == 0, outcome.err
    assert re.fullmatch(rf"({HEADER})?", outcome.err)
    document = outcome.json()
    assert document["schema"] in {1, 2, 3, 4}
    return document


def export_fields(report: dict[str, Any]) -> None:
    (graph,) = report["graphs"]
    assert graph["path"] == GRAPH
    assert graph["sha256"] == artifact.sha256(Path(GRAPH))
    assert graph["parity"]["passed"] is True


def sensitivity_fields(report: dict[str, Any]) -> None:
    assert report["form"] == "unsigned"
    assert 0.5 < report["all_low"]["agreement"] <= 1
    assert {row["layer"].partition("/")[0] for row in report["layers"]} > {"down.0.0.conv", "rise.0", "classifier"}
    assert all(row["cost"] > 0 for row in report["layers"])


def parity_fields(report: dict[str, Any]) -> None:
    assert report["passed"] is True
    assert (report["schema"], report["departure"]) == (4, None)
    assert report["limits"] == {
        "min_agreement": 0.9999,
        "max_near_ties": 0.01,
        "max_pool_ties": 0.00002,
        "max_unexplained": 0.0,
        "max_drop": 0.05,
    }
    assert [stage["name"] for stage in report["stages"]] == ["graph", "engine", "engine, batch 3"]
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
    assert report["plan"]["typed"]["work"] == {"fp32": 1.0}


def adopt_fields(report: dict[str, Any]) -> None:
    assert report["path"] == "export/theirs.fp32.onnx"
    assert report["reading"]["layout"] == "NHWC"
    assert report["classes"] == ["background", "foreground"]
    assert report["parity"]["reference"] == "ONNX Runtime"


def import_fields(report: dict[str, Any]) -> None:
    assert report["checkpoint"] == "checkpoints/street.safetensors"
    assert report["spec"]["model"] == "unet"
    assert report["keys"]["family"] == "milesial's U-Net"
    assert report["keys"]["left_over"] == []


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
        ("import theirs.pth --name street --size 48x64", import_fields),
        (f"adopt {GRAPH} --name theirs --classes background,foreground --calibrate data", adopt_fields),
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
    if command == "import":
        torch.save(MilesialUNet(2, 3, bilinear=False).state_dict(), "theirs.pth")
    done = run(command, *others, "--json")
    if command == "train":  # a line for each epoch, for the log
        found = re.fullmatch(rf"({HEADER})epoch 1/1  loss .*\n", done.err)
        assert found
        done = Outcome(done.code, done.out, found[1])
    fields(result(done))


def test_every_command_that_speaks_json_is_tested(request: pytest.FixtureRequest) -> None:
    """A new command takes its place in the table above."""
    ours = request.node.parent.collect()
    tested = {test.callspec.id.partition("-")[0] for test in ours if test.name.startswith("test_json_is_one_document")}
    speaking = [name for name in commands.names() if "as_json" in {p.name for p in commands.load(name).COMMAND.params}]
    assert sorted(tested) == speaking


@pytest.mark.parametrize(
    "arguments,shown",
    [
        ("parity --data data --engine ort:fp32", "proven: unet on 3 images, to the engine"),
        ("parity --data data --engine ort:fp32", "max pool ties 0.00002, max unexplained 0, "),
        ("parity --data data --engine ort:fp32 --max-drop 3", "max drop 3\n"),
        ("parity --data data --engine ort:fp32 --bisect", "engine, bisected on 0.png: All 23 layers, each given what"),
        ("bench --runs 2 --engine ort:fp32", "2 interleaved runs"),
        ("eval --data data --engine ort:fp32", "unet in ort, 3 images: mIoU 0."),
        (
            "infer data/images --engine ort:fp32",
            "6 done, 0 failed, 0 skipped (no images, excluded, or written by segdeploy); masks in masks",
        ),
        (f"inspect {GRAPH}", "kind: graph"),
        ("inspect checkpoints/unet.safetensors", "kind: checkpoint"),
        ("models", "weights: file checkpoints/unet.safetensors (mIoU 0.5000)"),
        (BUILD, "engines/unet.trt-rtx.fp32.cc89.plan"),
        ("trust", "No file from elsewhere is trusted."),
        ("doctor", "ov on cpu: usable"),
    ],
)
@pytest.mark.usefixtures("labelled", "workspace")
def test_without_a_terminal_there_is_the_result_alone(run: Run, arguments: str, shown: str) -> None:
    """No bars, no colours, whatever a build server asks for; what the data hold is said on stderr."""
    done = run(*arguments.split(), FORCE_COLOR="1", TERM="xterm-256color")
    assert done.code == 0, done.err
    assert re.fullmatch(HEADER if "--data" in arguments else "", done.err)
    assert shown in done.out


@pytest.mark.usefixtures("labelled", "workspace")
def test_infer_writes_the_kinds_that_were_asked_for(run: Run) -> None:
    """And no masks where none were; --overlay adds its kind, as before there was --write."""
    done = run("infer", "data/images", "--engine", "ort:fp32", "--write", "npy,npy", "--overlay", "--json")
    assert [(each["kind"], each["folder"]) for each in result(done)["outputs"]] == [
        ("npy", "masks-npy"),
        ("overlay", "masks-overlays"),
    ]
    assert len(list(Path("masks-npy").glob("*.npy"))) == len(list(Path("masks-overlays").glob("*.jpg"))) == 6
    assert not list(Path("masks").rglob("*.png"))
