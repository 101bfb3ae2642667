"""The real command on its way to low precision: what it refuses, what it prints, and Ctrl-C in the middle."""

import dataclasses
import json
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from command_line import assert_refused, on_a_terminal
from conftest import COMMAND, Run, known, photograph, photographs
from PIL import Image

from segdeploy import artifact, signature
from segdeploy.certificate import Stage
from segdeploy.origin import Calibration
from segdeploy.precision import int8

INT8 = ("export", "--model", "unet", "--precision", "int8")
QUICKLY = ("--form", "unsigned", "--calibrate", "photos", "--min-agreement", "0.8")
SIGNED, UNSIGNED = (Path("export", f"unet.int8-{form}.onnx") for form in ("signed", "unsigned"))
RECORD = SIGNED.with_suffix(".pareto.json")
MANY = 60  # photographs: a ranking on half of them lasts some seconds


@pytest.fixture(scope="module")
def quantized(small: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `small` after `export --precision int8`, with photos/ and without a budget to speak of."""
    folder = tmp_path_factory.mktemp("quantized")
    shutil.copytree(small, folder, dirs_exist_ok=True)
    photographs(folder / "photos", *(f"{index}.png" for index in range(8)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        made = run(*INT8, "--calibrate", "photos", "--min-agreement", "0.8")
    assert (made.code, made.err) == (0, "")
    return folder


@pytest.fixture
def work(quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the test: a copy of that folder."""
    shutil.copytree(quantized, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def cache_of(tensors: list[str], path: Path) -> Path:
    """A calibration cache as TensorRT wrote it: each tensor's scale as the hex of a float32."""
    lines = [f"{name}: {struct.pack('!f', 0.05).hex()}" for name in tensors]
    path.write_text("\n".join(["TRT-100000-EntropyCalibration2", *lines, ""]))
    return path


def steps() -> list[dict[str, Any]]:
    """The measurements of the signed form so far."""
    found: list[dict[str, Any]] = json.loads(RECORD.read_bytes())["steps"] if RECORD.is_file() else []
    return found


# What is refused


@pytest.mark.parametrize(
    "arguments,code,what",
    [
        ("export --model unet --max-drop 1", 2, "--max-drop belongs to --precision fp16, fp8 or int8"),
        ("export --model unet --max-drop 0", 2, "--max-drop belongs to --precision fp16, fp8 or int8"),
        ("export --model unet --min-agreement 1", 2, "--min-agreement belongs to --precision fp16, fp8 or int8"),
        ("export --model unet --calibrate photos", 2, "--calibrate belongs to --precision fp16, fp8 or int8"),
        ("export --model unet --form signed", 2, "--form belongs to"),
        ("export --model unet --calibration-method mse", 2, "--calibration-method b"),
        ("export --model unet --calibration-cache t", 2, "--calibration-cache belongs"),
        ("export --model unet --precision int8 --output logits", 2, "--output belongs to --precision fp32"),
        ("export --model unet --precision bf16", 2, "'bf16' is not one of"),
        ("export --model unet --precision int8 --form both", 2, "'both' is not one of"),
        ("export --model unet --precision int8 --calibration-method max", 2, "'max' is not one of"),
        ("export --model unet --precision int8 --max-drop -1", 2, "-1.0 is not in the range"),
        ("export --model unet --precision int8 --min-agreement 98", 2, "98.0 is not in the range"),
        (f"{' '.join(INT8)} --calibrate photos --min-agreement nan", 2, "nan"),
        (f"{' '.join(INT8)} --calibrate photos --max-drop nan", 2, "nan"),
        (f"{' '.join(INT8)} --calibrate photos --max-drop inf", 2, "inf"),
        ("export --model unet --precision fp16 --calibrate photos --form signed", 2, "fp16 has one form"),
        (
            "export --model unet --precision fp16 --calibrate photos --calibration-method mse",
            2,
            "no calibration method",
        ),
        ("export --model unet --precision fp16 --calibrate photos --calibration-cache t", 2, "no calibration"),
        ("export --model unet --precision int8", 2, "there are no images to calibrate"),
        ("export --model unet --precision fp16", 2, "there are no images to calibrate"),
        ("export --model unet --precision int8 --calibrate nothing", 2, "nothing has no images"),
        ("export --model unet --precision int8 --calibrate empty", 2, "empty has no images"),
        ("export --model unet --precision int8 --calibrate one", 2, "one image is not enough"),
        ("export --model unet --precision int8 --data empty", 2, "empty/images is missing or has no images"),
        ("export --model unet --precision int8 --calibrate photos --data photos", 2, "photos/images is missing"),
        ("export --model unet --precision int8 --calibrate corrupt --data data", 3, "none of 2 calibration images"),
        ("export --model unet --precision int8 --data strange", 3, "has class 7; the network has 2 classes"),
        ("export --model unet --precision int8 --calibration-cache gone", 2, "File 'gone' does not exist"),
        (f"{' '.join(INT8)} --calibrate photos --calibration-cache other", 3, "the calibration cache lacks 3"),
        (f"{' '.join(INT8)} --calibrate photos --calibration-cache t", 3, "is no line of a TensorRT calibration cache"),
        (f"{' '.join(INT8)} --calibrate photos --calibration-cache bytes", 3, "cannot read the calibration cache"),
        (f"{' '.join(INT8)} --calibrate photos --calibration-cache t --calibration-method mse", 2, "has its method"),
        ("sensitivity --precision fp32", 2, "'fp32' is not one of"),
        ("sensitivity --model nothing", 2, "there is no model named 'nothing'"),
        ("sensitivity --model unet", 2, "there are no images to calibrate"),
        ("sensitivity --model unet --data strange", 3, "has class 7; the network has 2 classes"),
        ("infer photos --engine torch:int8", 2, "torch is the reference, in fp32"),
        (f"infer photos --engine int8 --model {SIGNED}", 3, "is in the signed form; ort takes unsigned"),
        (f"bench --runs 1 --engine ov:int8 --model {SIGNED}", 3, "is in the signed form; ov takes unsigned"),
        (f"infer photos --engine fp32 --model {UNSIGNED}", 3, "is an int8 graph; fp32 was asked for"),
        ("infer photos --engine ov:fp32 --device cuda", 2, "ov has no device 'cuda'"),
    ],
)
@pytest.mark.usefixtures("labelled")
def test_an_error_is_two_lines(run: Run, work: Path, arguments: str, code: int, what: str) -> None:
    """And the graphs that are there stay as they are."""
    shutil.rmtree(work / "validation")
    (work / "empty").mkdir()
    (work / "data").symlink_to(work.parent / "data")
    for file in photographs(work / "corrupt", "a.png", "b.png").iterdir():
        file.write_bytes(file.read_bytes()[: 300 if file.stem == "a" else 299])
    photographs(work / "one", "a.png")
    strange = photographs(work / "strange", "images/a.png", "images/b.png")
    for name in "ab":
        (strange / "masks").mkdir(exist_ok=True)
        Image.new("L", (80, 60), 7).save(strange / f"masks/{name}.png")
    (work / "t").write_text("TRT\nthis is none\n")
    (work / "bytes").write_bytes(b"\xff\xfe")
    tensors = int8.tensors(onnx.load("export/unet.fp32.onnx"))
    cache_of([*tensors[3:], "another/tensor"], work / "other")
    before = {path.name: path.read_bytes() for path in Path("export").glob("*.onnx*")}
    assert_refused(run(*arguments.split()), code, what)
    assert {path.name: path.read_bytes() for path in Path("export").glob("*.onnx*")} == before


def test_a_cache_of_another_network_is_refused_with_the_names(run: Run, work: Path) -> None:
    tensors = int8.tensors(onnx.load("export/unet.fp32.onnx"))
    refused = run(*INT8, *QUICKLY, "--calibration-cache", cache_of(tensors[2:], work / "cache"))
    assert_refused(refused, 3, f"lacks 2 of {len(tensors)} tensors: {tensors[0]}, {tensors[1]}.")


def test_a_float_graph_that_failed_its_proof_ends_with_4(run: Run, work: Path) -> None:
    graph = artifact.read(work / "export/unet.fp32.onnx")
    failed = dataclasses.replace(
        known(artifact.read(UNSIGNED).certificate),
        passed=False,
        first_failing_stage="graph",
        stages=(Stage(name="graph", passed=False, reason="a planted reason"),),
    )
    signature.publish_graph(dataclasses.replace(graph, certificate=failed))
    assert_refused(run(*INT8, *QUICKLY), 4, "a planted reason")


# What is printed


@pytest.mark.usefixtures("work")
def test_the_export_says_what_it_made_and_what_stayed_in_float(run: Run) -> None:
    """Outside the default budget without its last layers: it says which, and what the runtimes make of the rest."""
    done = run(*INT8, "--calibrate", "photos")
    assert (done.code, done.err) == (0, "")
    said = next(line for line in done.out.splitlines() if line.startswith("  float32: "))
    assert "up.3.0.conv" in said
    assert said.endswith(" (gives accuracy back)")
    assert done.out.count("  multiply-adds: ") == 2
    assert "% int8; ort computes " in done.out
    assert "  proven: unet on 4 images, to the graph\n" in done.out
    assert "  proven: unet on 4 images, to the engine\n" in done.out


@pytest.mark.usefixtures("work")
def test_the_export_as_json_has_every_graph(run: Run) -> None:
    done = run(*INT8, "--calibrate", "photos", "--min-agreement", "0.8", "--json")
    assert (done.code, done.err) == (0, "")
    report = done.json()
    assert report["schema"] == 3
    assert [(graph["path"], graph["form"]) for graph in report["graphs"]] == [
        (str(SIGNED), "signed"),
        (str(UNSIGNED), "unsigned"),
    ]
    for graph in report["graphs"]:
        assert graph["sha256"] == artifact.sha256(Path(graph["path"]))
        assert (graph["precision"], graph["in_float"], graph["asked"]) == ("int8", {}, {"int8": 1})
        assert graph["parity"]["passed"]


@pytest.mark.usefixtures("work")
def test_a_cache_of_this_network_is_taken_in_place_of_images(run: Run, work: Path) -> None:
    cache = cache_of(int8.tensors(onnx.load("export/unet.fp32.onnx")), work / "calibration.cache")
    done = run(*INT8, *QUICKLY, "--min-agreement", "0.65", "--calibration-cache", cache)
    assert (done.code, done.err) == (0, "")
    calibration = artifact.read(UNSIGNED).origin.calibration
    assert calibration == Calibration(method="cache", cache={cache.name: artifact.sha256(cache)})


def test_random_weights_are_measured_and_not_judged(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gates nothing, gives nothing back, and says so."""
    monkeypatch.chdir(tmp_path)
    built = ("--weights", "random", "--size", "64x64", "--option", "multiplier=0.125")
    done = run(*INT8, *built, "--min-agreement", "1", "--max-drop", "0")
    assert (done.code, done.err) == (0, "")
    assert done.out.count("measured, not judged (random weights): unet on 1 image") == 2
    assert "float32:" not in done.out
    assert known(artifact.read(UNSIGNED).low_precision).in_float == {}


@pytest.mark.usefixtures("work")
def test_sensitivity_prints_modules_of_the_network_and_keeps_its_record(run: Run) -> None:
    done = run("sensitivity", "--calibrate", "photos", "--form", "signed")
    assert (done.code, done.err) == (0, "")
    rows = [line.split()[0] for line in done.out.splitlines() if "%" in line]
    assert {"classifier", "up.3.0.conv", "down.0.0.conv", "rise.3"} <= set(rows)
    assert "/Conv" not in done.out
    assert "costs, multiply-adds" in done.out
    assert f"unet in int8 signed, 4 images, kept in {RECORD}" in done.out
    assert len(steps()) == 1 + len(rows[:-1])


@pytest.mark.usefixtures("work")
def test_sensitivity_as_json_is_one_document(run: Run) -> None:
    report = run("sensitivity", "--calibrate", "photos", "--precision", "fp16", "--json").json()
    assert (report["schema"], report["precision"], report["form"]) == (2, "fp16", None)
    assert report["all_low"]["agreement"] > 0.99
    assert {"layer", "quality", "regained", "cost", "score"} == set(report["layers"][0])


@pytest.mark.usefixtures("work")
def test_a_terminal_sees_every_part_of_the_work() -> None:
    shown = on_a_terminal("sensitivity", "--calibrate", "photos", "--form", "unsigned")
    for title in ("Calibrating unet", "Reading unet's masks", "Ranking unet.int8-unsigned"):
        assert title in shown


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize("engine", ["ort:int8", "ov:int8"])
def test_infer_takes_an_engine_of_low_precision(run: Run, engine: str) -> None:
    report = run("infer", "photos", "--engine", engine, "--json").json()
    assert (report["done"], report["failed"], report["precision"]) == (8, [], "int8")
    assert report["file"] == str(UNSIGNED)


# Ctrl-C


@pytest.fixture
def many(work: Path) -> Path:
    """So many photographs that a ranking can be cut off."""
    (work / "many").mkdir()
    for index in range(MANY):
        Image.fromarray(photograph(60, 80, index)).save(work / f"many/{index}.png")
    RECORD.unlink()
    return work


def cut_off(*arguments: str) -> tuple[int, str]:
    """Start the command and send SIGINT once there are some steps."""
    with (
        subprocess.Popen([COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
    ):
        while len(steps()) < 3:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    return process.returncode, err


def sensitivity_report(run: Run) -> None:
    report = run("sensitivity", "--form", "signed", "--calibrate", "many", "--json").json()
    assert len(report["layers"]) == 23


def exported(run: Run) -> None:
    done = run(*INT8, "--form", "signed", "--calibrate", "many")
    assert (done.code, done.err) == (0, "")
    (accepted,) = [step for step in steps() if step["accepted"]]
    assert sorted(known(artifact.read(SIGNED).low_precision).in_float) == accepted["in_float"]


@pytest.mark.parametrize(
    "command,again", [(("sensitivity",), sensitivity_report), (INT8, exported)], ids=["sensitivity", "export"]
)
@pytest.mark.usefixtures("many")
def test_ctrl_c_in_the_middle_of_a_ranking_loses_nothing(
    run: Run, command: tuple[str, ...], again: Callable[[Run], None]
) -> None:
    """Run again, it goes on: what was measured stands as it is, in its place."""
    before = {path: path.read_bytes() for path in Path("export").glob("*.onnx*")}
    code, err = cut_off(*command, "--form", "signed", "--calibrate", "many")
    assert (code, err.strip()) == (130, "Interrupted; what was finished is kept.")
    assert {path: path.read_bytes() for path in Path("export").glob("*.onnx*")} == before
    assert not list(Path("export").glob(".*"))
    kept = measured(steps())
    assert 3 <= len(kept) < 24, "the ranking was over before it was cut off"
    again(run)
    assert measured(steps())[: len(kept)] == kept
    assert len(steps()) >= 24


def measured(rows: list[dict[str, Any]]) -> list[tuple[list[str], float]]:
    return [(row["in_float"], row["agreement"]) for row in rows]
