"""`segdeploy data` by the real command, and what the check of labels prints in the others."""

import contextlib
import os
import pty
import subprocess
from pathlib import Path

import numpy as np
import pytest
from command_line import SMALL, assert_refused
from conftest import COMMAND, Run, photograph
from layout_folders import write_cityscapes
from PIL import Image

HEADER = "data, layout plain: 6 images, 6 with masks: 3 train, 3 val (as the folder says)"


@pytest.fixture
def warned(labelled: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, named `data` from the working directory, whose table has a class without a pixel."""
    (labelled / "classes.csv").write_text("name,r,g,b\nground,0,0,0\nthing,255,196,0\nrider,1,1,1\n")
    monkeypatch.chdir(labelled.parent)
    return labelled


def test_check_says_what_is_in_a_folder(run: Run, labelled: Path) -> None:
    done = run("data", "check", labelled)
    assert (done.code, done.err) == (0, "")
    first, sizes, classes, verdict = done.out.splitlines()
    assert first == f"{labelled.parent}/{HEADER}"
    assert sizes == "  sizes: 60x80 (6)"
    assert classes.startswith("  classes: class_0 ")
    assert verdict == "nothing is wrong with it"


@pytest.mark.usefixtures("warned")
def test_check_says_every_fault_and_ends_with_3(run: Run) -> None:
    done = run("data", "check", "data")
    assert done.code == 3
    assert done.out.startswith(HEADER)
    assert "\nwarning: no pixel is of rider: classes.csv names it.\n  Bring images that show them" in done.out
    assert done.err.splitlines() == [
        "Error: no pixel is of rider: classes.csv names it.",
        "Bring images that show them, or number the classes without gaps. Where it is meant so: --force",
    ]


@pytest.mark.usefixtures("warned")
def test_check_can_be_told_that_a_warning_is_meant(run: Run) -> None:
    done = run("data", "check", "data", "--force")
    assert (done.code, done.err) == (0, "")
    assert "warning: no pixel is of rider" in done.out


def test_an_error_cannot_be_forced(run: Run, warned: Path) -> None:
    (warned / "masks/3.png").write_bytes(b"")
    for force in ([], ["--force"]):
        done = run("data", "check", "data", *force)
        assert done.code == 3
        assert done.err.startswith("Error: 1 mask cannot be used, the first: ")


@pytest.mark.usefixtures("warned")
def test_check_as_json_is_one_document(run: Run) -> None:
    done = run("data", "check", "data", "--force", "--json")
    report = done.json()
    assert (done.code, report["schema"], report["images"], report["train"], report["val"]) == (0, 1, 6, 3, 3)
    assert [(fault["severity"], fault["name"]) for fault in report["faults"]] == [("warning", "absent-class")]
    assert sum(each["share"] for each in report["classes"]) == pytest.approx(1)


def test_check_takes_the_index_to_ignore(run: Run, labelled: Path) -> None:
    Image.fromarray(np.full((60, 80), 11, np.uint8)).save(labelled / "masks/1.png")
    assert run("data", "check", labelled).code == 3
    assert run("data", "check", labelled, "--ignore-index", "11").code == 0


@pytest.mark.parametrize(
    "arguments, code, what",
    [
        ("check", 2, "Missing argument 'FOLDER'"),
        ("check nothing", 2, "there is no folder nothing"),
        ("check data/images", 2, "data/images/images is missing or has no images"),
        ("check data --ignore-index 256", 2, "256 is not in the range"),
        ("nothing", 2, "No such command 'nothing'"),
        ("convert data/masks", 2, "Missing option '--out'"),
        ("convert data/masks --out new --void black", 2, "'black' is no R,G,B of 0 to 255"),
        ("convert data/masks --out new --void 0,0,256", 2, "'0,0,256' is no R,G,B of 0 to 255"),
        ("convert data/masks --out new --classes nothing.csv", 2, "there is no table of classes nothing.csv"),
        ("convert data/images --out data/masks", 2, "data/masks/0.png is there already"),
        ("convert data/images --out new", 3, "which classes.csv does not name"),
    ],
)
@pytest.mark.usefixtures("warned")
def test_an_error_is_two_lines(run: Run, arguments: str, code: int, what: str) -> None:
    assert_refused(run("data", *arguments.split()), code, what)
    assert not list(Path().glob("new/*"))


def test_convert_makes_index_masks(run: Run, warned: Path) -> None:
    colours = warned / "colours"
    colours.mkdir()
    drawn = np.array([[(0, 0, 0), (255, 196, 0), (9, 9, 9), (8, 8, 8)]], np.uint8)
    Image.fromarray(drawn).save(colours / "a.png")
    done = run("data", "convert", "data/colours", "--out", "new", "--void", "9,9,9", "--void-others", "--json")
    assert done.json() == {
        "schema": 1,
        "out": "new",
        "masks": 1,
        "pixels": {"ground": 1, "thing": 1, "rider": 0},
        "ignored": 2,
    }
    assert np.array(Image.open("new/a.png")).tolist() == [[0, 1, 255, 255]]
    shown = run("data", "convert", "data/colours", "--out", "other", "--void", "9,9,9", "--void", "8,8,8")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out == "1 masks in other: ground 25.0%, thing 25.0%, rider 0.0%, ignored 50.0%\n"


@pytest.mark.parametrize("command", ["check", "convert"])
def test_each_command_of_the_group_has_help(run: Run, command: str) -> None:
    shown = run("data", command, "--help")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.startswith(f"Usage: segdeploy data {command} [OPTIONS]")
    assert "--json" in shown.out


def test_a_folder_of_another_layout_is_said_and_checked(run: Run, tmp_path: Path) -> None:
    write_cityscapes(tmp_path / "city", {f"{index:02}": np.eye(8, dtype=np.uint8) for index in range(6)})
    done = run("data", "check", tmp_path / "city", "--force", "--json")
    assert done.code == 0, done.err
    assert '"layout": "cityscapes"' in done.out
    again = run("data", "check", tmp_path / "city", "--layout", "cityscapes", "--force")
    assert again.out.startswith(f"{tmp_path}/city, layout cityscapes: 6 images, 6 with masks: 4 train, 2 val")
    other = run("data", "check", tmp_path / "city", "--layout", "voc")
    assert_refused(other, 2, "has no masks in SegmentationClass/, which the layout voc needs")


def test_a_layout_that_is_none_or_has_no_folder_is_refused(run: Run, labelled: Path) -> None:
    assert_refused(run("data", "check", labelled, "--layout", "atlantis"), 2, "'atlantis' is not one of")
    assert_refused(run("parity", "--layout", "voc"), 2, "--layout says how --data is laid out: give both")


def test_a_folder_of_any_layout_is_converted_to_ours(run: Run, tmp_path: Path) -> None:
    write_cityscapes(tmp_path / "city", {f"{index:02}": np.eye(8, dtype=np.uint8) for index in range(6)})
    done = run("data", "convert", tmp_path / "city", "--out", tmp_path / "ours")
    assert done.code == 0, done.err
    assert done.out.startswith(f"6 masks in {tmp_path}/ours: road 87.5%, sidewalk 12.5%")
    ours = run("data", "check", tmp_path / "ours", "--force")
    assert "layout plain: 6 images, 6 with masks: 4 train, 2 val" in ours.out
    refused = run("data", "convert", tmp_path / "city", "--out", tmp_path / "new", "--void-others")
    assert_refused(refused, 2, "is a labelled folder, whose layout says its classes")


# --- the others

TRAIN = ("train", "--model", "unet", *SMALL, "--batch", "3", "--epochs", "1", "--out", "new")


@pytest.mark.parametrize(
    "arguments",
    [
        TRAIN,
        ("eval", "--engine", "ort:fp32"),
        ("export", "--model", "unet"),
        ("parity", "--engine", "ort:fp32"),
        ("bench", "--engine", "ort:fp32", "--runs", "1"),
        ("sensitivity",),
    ],
    ids=lambda arguments: arguments[0],
)
@pytest.mark.usefixtures("workspace")
def test_a_command_says_what_is_in_its_data_and_stops_at_a_fault(
    run: Run, labelled: Path, arguments: tuple[str, ...]
) -> None:
    Image.fromarray(photograph(60, 40)).save(labelled / "images/3.png")
    done = run(*arguments, "--data", "data")
    assert (done.code, done.out) == (3, "")
    *header, what, remedy = done.err.splitlines()
    assert header[0] == HEADER
    assert what.startswith("Error: 1 mask has another shape than the photo, the first: data/masks/3.png is 60x80")
    assert remedy == "Bring the mask of this very photo."
    assert not Path("new").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("workspace")
def test_training_goes_on_past_a_warning_that_is_meant(run: Run, warned: Path) -> None:
    refused = run(*TRAIN, "--data", warned)
    assert refused.code == 3
    assert "no pixel is of rider" in refused.err
    done = run(*TRAIN, "--data", warned, "--force")
    assert done.code == 0, done.err
    assert "Warning: no pixel is of rider: classes.csv names it." in done.err


def test_the_bar_of_a_training_waits_for_its_first_step() -> None:
    """What is checked before has a bar of its own, and two at once would be drawn over each other."""
    ours, theirs = pty.openpty()
    script = (
        "from segdeploy.cli import bars\n"
        "with bars.show_training(2) as training:\n"
        "    with bars.show_progress('Checking', 3) as done:\n"
        "        done()\n"
        "    print('between')\n"
        "    training.steps(4, 0)\n"
        "    training.step(epoch=1, loss=0.5, miou=None)\n"
    )
    environment = {**os.environ, "TERM": "xterm-256color"}
    with subprocess.Popen(
        [COMMAND.with_name("python"), "-c", script], stdout=theirs, stderr=theirs, env=environment
    ) as done:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # a terminal that nobody writes to any more
            while part := os.read(ours, 65536):
                shown += part
    os.close(ours)
    assert done.returncode == 0
    before, _, after = shown.decode().partition("between")
    assert "Checking" in before
    assert "Training" not in before
    assert "epoch 1/2  loss 0.5000" in after
