"""A folder of photographs becomes a folder of masks: every file answered for, nothing half written or lost."""

import contextlib
import errno
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import COMMAND, SPEC, Run, as_ordinary_user, photograph, photographs
from numpy.typing import NDArray
from PIL import ExifTags, Image

from segdeploy import images, making
from segdeploy.engines import Engine
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.inference import run

MANY = 400
LARGEST_GROWTH, GROWTH_MB = 1.10, 16  # of the memory above the loaded engine, whichever allows more

ORT = ("--engine", "ort:fp32")
MEMORY = """
import sys
from pathlib import Path
from segdeploy import making
from segdeploy.inference import run
from segdeploy.engines import RunOptions

def peak_mb():  # of this program alone: getrusage counts what the parent held before
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

with making.open("unet", engine="ort:fp32", options=RunOptions(threads=1)) as engine:
    sources, _ = run.find([sys.argv[1]], leave_out=Path("masks"))
    run.run(engine, sources[:1], Path("masks"), overlay=False, done=lambda: None)
    before = peak_mb()
    assert run.run(engine, sources, Path("masks"), overlay=False, done=lambda: None).done == len(sources)
    print(peak_mb() - before)
"""


def segment(*inputs: str, out: str = "masks", overlay: bool = False) -> dict[str, Any]:
    return making.infer(inputs, out=Path(out), model="unet", engine="ort:fp32", overlay=overlay)


def below(folder: str | Path) -> list[str]:
    """Every file, relative to the folder."""
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if not path.is_dir())


def found(*inputs: str, out: str = "masks") -> tuple[list[str], int]:
    sources, skipped = run.find(inputs, leave_out=Path(out))
    return [str(source.relative) for source in sources], skipped


def indices(mask: Path) -> NDArray[np.uint8]:
    with Image.open(mask) as image:
        return np.array(image)


def links(folder: Path, count: int, *, height: int, width: int) -> Path:
    """As many names of one photograph: a large folder that takes no time to make."""
    photographs(folder, "0000.jpg", height=height, width=width)
    for index in range(1, count):
        (folder / f"{index:04}.jpg").hardlink_to(folder / "0000.jpg")
    return folder


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Children inherit an ignored SIGINT, as jobs in the background have it; a handler they do not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def cut_off(signal_number: int, *, after: int) -> tuple[int, str, str]:
    """Start `infer photos` and send a signal once there are some masks."""
    with (
        interruptible(),
        subprocess.Popen(
            [COMMAND, "infer", "photos", *ORT, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process,
    ):
        while len(list(Path("masks").glob("*.png"))) < after:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal_number)
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


# What is taken


def test_a_folder_is_taken_with_all_below_it_in_order(workspace: Path) -> None:
    photographs(workspace / "photos", "b.jpg", "a.PNG", "sub/deep/c.webp", "sub/a.tif")
    (workspace / "photos/notes.txt").write_text("no list: it lies in a folder")
    (workspace / "photos/sub/noending").write_text("")
    assert found("photos") == (["a.PNG", "b.jpg", "sub/a.tif", "sub/deep/c.webp"], 2)


def test_a_file_is_taken_by_its_name(workspace: Path) -> None:
    photographs(workspace / "photos", "a.jpg", "sub/b.jpg")
    assert found("photos/sub/b.jpg") == (["b.jpg"], 0)


def test_a_glob_keeps_the_paths_below_what_the_files_share(workspace: Path) -> None:
    photographs(workspace / "photos", "one/a.jpg", "two/b.jpg", "two/c.png", "two/deep/d.jpg")
    assert found("photos/*/*.jpg") == (["one/a.jpg", "two/b.jpg"], 0)
    assert found("photos/**/*.jpg") == (["one/a.jpg", "two/b.jpg", "two/deep/d.jpg"], 0)
    assert found("photos/two/*") == (["b.jpg", "c.png"], 0)


def test_a_name_that_looks_like_a_glob_is_a_name(workspace: Path) -> None:
    photographs(workspace, "photo[1].jpg", "photo1.jpg")
    assert found("photo[1].jpg") == (["photo[1].jpg"], 0)


def test_a_list_names_files_relative_to_its_folder(workspace: Path) -> None:
    photographs(workspace / "photos", "a.jpg", "sub/b.jpg", "c.jpg")
    (workspace / "photos/list.txt").write_text("a.jpg\r\n\n sub/b.jpg \nnotes.md\n")
    assert found("photos/list.txt") == (["a.jpg", "sub/b.jpg"], 1)


def test_a_list_may_hold_names_in_any_encoding(workspace: Path) -> None:
    (workspace / "list.txt").write_bytes(b"\xef\xbb\xbfcaf\xe9.jpg\nk\xc3\xa4se.jpg\n")
    assert found("list.txt") == ([os.fsdecode(b"caf\xe9.jpg"), "käse.jpg"], 0)


def test_a_file_that_is_named_twice_is_done_once(workspace: Path) -> None:
    photographs(workspace / "photos", "a.jpg", "b.jpg")
    (workspace / "list.txt").write_text("photos/a.jpg\nphotos/a.jpg\n")
    assert found("photos", "photos/a.jpg", "photos/*.jpg", "list.txt", "./photos/../photos") == (["a.jpg", "b.jpg"], 0)


@pytest.mark.parametrize("inputs", [("photos",), ("photos", "other"), ("photos/*",), ("photos/notes.md",)])
def test_inputs_without_an_image_are_refused(run: Run, workspace: Path, inputs: tuple[str, ...]) -> None:
    (workspace / "photos").mkdir()
    (workspace / "photos/notes.md").write_text("")
    (workspace / "other").mkdir()
    refused = run("infer", *inputs, *ORT, "--model", "unet")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith(f"Error: there are no images in {', '.join(inputs)}.\nKnown endings: ")
    assert not (workspace / "masks").exists()


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("name", ["nothing", "nothing.jpg", "nothing/*.jpg", "nothing.txt"])
def test_a_missing_path_is_refused(run: Run, name: str) -> None:
    refused = run("infer", name, *ORT)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == f"Error: {name} does not exist.\nName a folder, an image, a glob or a .txt list.\n"


def test_an_unreadable_folder_is_refused_before_anything_runs(workspace: Path) -> None:
    """Its files would be missing without a word."""
    workspace.chmod(0o755)
    photographs(workspace / "photos", "a.jpg", "locked/b.jpg")
    (workspace / "photos/locked").chmod(0)
    with as_ordinary_user(), pytest.raises(InvalidFileError) as refused:
        run.find(["photos"], leave_out=Path("masks"))
    assert refused.value.what == "cannot read the folder photos/locked: Permission denied."
    (workspace / "photos/locked").chmod(0o755)


def test_links_and_loops_end(workspace: Path) -> None:
    """Links to files are followed, links to folders are not."""
    photos = photographs(workspace / "photos", "a.jpg", "sub/b.jpg")
    (photos / "link.jpg").symlink_to("a.jpg")
    (photos / "x.jpg").symlink_to("y.jpg")
    (photos / "y.jpg").symlink_to("x.jpg")
    (photos / "dangling.jpg").symlink_to("nothing.jpg")
    for index in range(200):
        (photos / f"sub/up{index}").symlink_to("..")
    report = segment("photos")
    assert (report["done"], report["skipped"]) == (3, 0)
    assert [Path(failure["path"]).name for failure in report["failed"]] == ["dangling.jpg", "x.jpg", "y.jpg"]
    assert below("masks") == ["a.png", "link.png", "sub/b.png"]


# Where masks go


def test_masks_keep_the_paths_of_their_images(workspace: Path) -> None:
    photographs(workspace / "photos", "a.jpg", "sub/a.jpg", "sub/deep/c.png")
    segment("photos")
    assert below("masks") == ["a.png", "sub/a.png", "sub/deep/c.png"]


def test_images_of_one_stem_both_have_their_mask(workspace: Path) -> None:
    photographs(workspace / "photos", "a.jpg", "a.png", "b.jpg", "sub/a.jpg")
    assert segment("photos", overlay=True)["done"] == 4
    assert below("masks") == ["a.jpg.png", "a.png.png", "b.png", "sub/a.png"]
    assert below("masks-overlays") == ["a.jpg.jpg", "a.png.jpg", "b.jpg", "sub/a.jpg"]
    assert not np.array_equal(indices(workspace / "masks/a.jpg.png"), indices(workspace / "masks/a.png.png"))


@pytest.mark.parametrize(
    "names,inputs",
    [
        (("one/a.jpg", "two/a.jpg"), ("one", "two")),
        (("a.jpg", "a.png", "a.jpg.tif"), (".",)),
    ],
)
def test_two_images_that_would_share_a_mask_are_refused_before_anything_runs(
    workspace: Path, names: tuple[str, ...], inputs: tuple[str, ...]
) -> None:
    photographs(workspace, *names)
    with pytest.raises(InvalidRequestError, match=r"would both be written to a(\.jpg)?\.(jpg|png)"):
        segment(*inputs)
    assert not (workspace / "masks").exists()


@pytest.mark.parametrize("absolute", [False, True])
def test_a_list_never_writes_outside_out(workspace: Path, *, absolute: bool) -> None:
    photographs(workspace, "elsewhere/a.jpg", "lists/near/b.jpg")
    lines = ["../elsewhere/a.jpg", "near/../near/b.jpg"]
    lines = [str(workspace / "lists" / line) for line in lines] if absolute else lines
    (workspace / "lists/list.txt").write_text("\n".join(lines))
    before = below(workspace)
    assert segment("lists/list.txt", out="out/masks")["done"] == 2
    assert below("out/masks") == ["elsewhere/a.png", "lists/near/b.png"]
    assert sorted({*before, *(f"out/masks/{name}" for name in below("out/masks"))}) == below(workspace)


@pytest.mark.parametrize(
    "named,taken",
    [(".", ["photos/a.jpg", "photos/b.png"]), ("**/*", ["photos/a.jpg", "photos/b.png"]), ("*/*.png", ["b.png"])],
)
def test_the_masks_of_a_first_run_are_no_images_of_the_second(workspace: Path, named: str, taken: list[str]) -> None:
    photographs(workspace / "photos", "a.jpg", "b.png")
    first = segment(".", overlay=True)
    written = below("masks") + below("masks-overlays")
    assert found(named)[0] == taken
    second = segment(".", overlay=True)
    assert (first["done"], first["skipped"]) == (second["done"], second["skipped"])
    assert below("masks") + below("masks-overlays") == written


def test_masks_behind_a_link_are_no_images_either(workspace: Path) -> None:
    """The overlays lie beside the link."""
    photographs(workspace / "photos", "a.jpg")
    (workspace / "real").mkdir()
    (workspace / "masks").symlink_to("real")
    for _ in range(2):
        assert segment(".", overlay=True)["done"] == 1
    assert below("real") == ["photos/a.png"]
    assert below("masks-overlays") == ["photos/a.jpg"]


@pytest.mark.parametrize("named", ["photos", "photos/", "photos/*", "./photos/../photos", "photos-link"])
def test_masks_do_not_go_where_the_photographs_lie(workspace: Path, named: str) -> None:
    """The next run would take them for photographs; a PNG would be lost at once."""
    photographs(workspace / "photos", "a.jpg", "b.png")
    (workspace / "photos-link").symlink_to("photos")
    before = (workspace / "photos/b.png").read_bytes()
    with pytest.raises(InvalidRequestError, match="is where the masks go"):
        segment(named, out="photos")
    assert below("photos") == ["a.jpg", "b.png"]
    assert (workspace / "photos/b.png").read_bytes() == before


@pytest.mark.parametrize("inputs,out", [(["photos/b.png"], "photos"), (["list.txt"], "photos"), (["b-link.png"], ".")])
def test_no_mask_replaces_a_photograph(workspace: Path, inputs: list[str], out: str) -> None:
    photographs(workspace, "photos/b.png")
    (workspace / "list.txt").write_text("photos/b.png\n")
    (workspace / "b-link.png").symlink_to("photos/b.png")
    before = (workspace / "photos/b.png").read_bytes()
    with pytest.raises(InvalidRequestError, match="is a photograph to read; its mask would replace it"):
        segment(*inputs, out=out)
    assert (workspace / "photos/b.png").read_bytes() == before


def test_no_overlay_replaces_a_photograph(workspace: Path) -> None:
    photographs(workspace, "masks-overlays/a.jpg")
    before = (workspace / "masks-overlays/a.jpg").read_bytes()
    with pytest.raises(InvalidRequestError, match="is a photograph to read"):
        segment("masks-overlays/a.jpg", overlay=True)
    assert (workspace / "masks-overlays/a.jpg").read_bytes() == before


def test_a_mask_may_lie_beside_its_photograph(workspace: Path) -> None:
    photographs(workspace, "photo.jpg")
    for _ in range(2):
        assert segment("photo.jpg", out=".")["done"] == 1
    assert (workspace / "photo.png").is_file()


def test_overlays_of_the_working_directory_have_a_name(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photographs(workspace / "photos", "a.jpg")
    (workspace / "here").mkdir()
    monkeypatch.chdir(workspace / "here")
    assert making.infer(["../photos"], out=Path(), model=str(workspace / "export/unet.fp32.onnx"), overlay=True)
    assert below(workspace / "here") == ["a.png"]
    assert below(workspace / "here-overlays") == ["a.jpg"]
    assert run.overlay_folder(Path("/")) == Path("/-overlays")


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize(
    "name",
    ["a b.jpg", "käse.jpg", "line\nbreak.jpg", os.fsdecode(b"caf\xe9.jpg"), "-o.jpg", "photo[1].jpg", "\u2028.jpg"],
)
def test_a_strange_name_is_as_good_as_any(run: Run, name: str) -> None:
    photographs(Path("photos"), name)
    (Path("photos") / f"bad {name}").write_bytes(b"no image")
    done = run("infer", "photos", *ORT, "--json", PYTHONIOENCODING="utf-8:strict")
    assert done.code == 5, done.err
    assert below("masks") == [f"{name[:-4]}.png"]
    assert [failure["path"] for failure in done.json()["failed"]] == [f"photos/bad {name}"]
    assert done.err.startswith("failed: photos/bad ")
    assert done.err.count("\n") == 1
    assert run("infer", f"./photos/{name}", *ORT, "--out", f"out {name}", PYTHONIOENCODING="utf-8:strict").code == 0
    assert below(f"out {name}") == [f"{name[:-4]}.png"]


# What is in a mask


def test_a_mask_is_what_the_engine_draws_at_photo_size(workspace: Path, engine: Engine) -> None:
    photographs(workspace / "photos", "a.png", height=90, width=150)
    segment("photos")
    expected = engine.segment(photograph(90, 150))
    with Image.open("masks/a.png") as mask:
        assert (mask.format, mask.mode, mask.size) == ("PNG", "P", (150, 90))
        palette = mask.getpalette()
        assert palette is not None
        assert palette[:6] == [value for colour in SPEC.colours for value in colour]
        np.testing.assert_array_equal(np.array(mask), expected)
    assert set(np.unique(expected)) == {0, 1}


def test_a_turned_photo_has_a_mask_that_lies_on_it(workspace: Path, engine: Engine) -> None:
    """EXIF says 6: to be shown, the stored pixels are turned by 90 degrees to the right."""
    upright = photograph(120, 70)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    (workspace / "photos").mkdir()
    Image.fromarray(np.rot90(upright).copy()).save("photos/turned.png", exif=exif)
    segment("photos")
    np.testing.assert_array_equal(indices(workspace / "masks/turned.png"), engine.segment(upright))


def test_an_overlay_shows_the_photo_in_the_colours_of_its_mask(workspace: Path, engine: Engine) -> None:
    photographs(workspace / "photos", "a.png", height=240, width=320)
    segment("photos", overlay=True)
    photo = photograph(240, 320)
    expected = images.overlay(photo, engine.segment(photo), SPEC.colours)
    shown = images.read(workspace / "masks-overlays/a.jpg")
    assert np.abs(shown.astype(int) - expected).mean() < 4  # JPEG
    assert np.abs(shown.astype(int) - photo).mean() > 20


def test_a_later_run_rewrites_the_same_bytes(workspace: Path) -> None:
    photographs(workspace / "photos", "a.jpg", "b.png", "sub/c.webp")
    segment("photos", overlay=True)
    names = [Path(name) for folder in ("masks", "masks-overlays") for name in sorted(Path(folder).rglob("*.*"))]
    first = {name: name.read_bytes() for name in names}
    names[0].write_bytes(b"of an older network")
    segment("photos", overlay=True)
    assert {name: name.read_bytes() for name in names} == first
    assert len(first) == 6


# What is answered for


def test_a_bad_file_is_reported_and_the_rest_is_done(run: Run, workspace: Path) -> None:
    photographs(workspace / "photos", "a.jpg", "b.jpg", "c.jpg")
    (workspace / "photos/b.jpg").write_bytes((workspace / "photos/b.jpg").read_bytes()[:300])
    (workspace / "photos/empty.png").write_bytes(b"")
    (workspace / "photos/notes.md").write_text("")
    (workspace / "photos/folder.png").mkdir()
    done = run("infer", "photos", *ORT, "--json")
    report = done.json()
    assert done.code == 5
    assert (report["done"], report["skipped"], len(report["failed"])) == (2, 1, 2)
    assert [failure["path"] for failure in report["failed"]] == ["photos/b.jpg", "photos/empty.png"]
    assert "Truncated" in report["failed"][0]["reason"]
    assert report["failed"][1]["reason"].startswith("photos/empty.png cannot be read: ")
    assert done.err.splitlines() == [f"failed: {failure['reason']}" for failure in report["failed"]]
    assert below("masks") == ["a.png", "c.png"]


def test_the_report_has_what_the_issue_asks_for(run: Run, workspace: Path) -> None:
    photographs(workspace / "photos", "a.jpg", "b.jpg")
    done = run("infer", "photos", *ORT, "--json")
    report = done.json()
    assert (done.code, done.err) == (0, "")
    assert (report["schema"], report["done"], report["skipped"], report["failed"]) == (1, 2, 0, [])
    assert report["seconds"] > 0
    assert report["images_per_s"] == pytest.approx(2 / report["seconds"])
    assert set(report["cpu_ms_per_image"]) == {"read", "resize", "engine", "write"}
    assert all(0 < spent < 10_000 for spent in report["cpu_ms_per_image"].values())
    assert report["interrupted"] is False


def test_a_run_in_which_everything_failed_has_a_report(run: Run, workspace: Path) -> None:
    (workspace / "bad.png").write_bytes(b"")
    done = run("infer", "bad.png", *ORT, "--json")
    assert done.code == 5
    assert (done.json()["done"], done.json()["images_per_s"]) == (0, 0)
    assert done.json()["cpu_ms_per_image"] == {"read": None, "resize": None, "engine": None, "write": None}


def test_an_overlay_that_no_jpeg_can_hold_fails_alone(workspace: Path) -> None:
    photographs(workspace / "photos", "a.png")
    Image.fromarray(np.zeros((1, 65_501, 3), np.uint8)).save("photos/long.png")
    report = segment("photos", overlay=True)
    assert (report["done"], len(report["failed"])) == (1, 1)
    assert "an overlay of 65501x1 is too long" in report["failed"][0]["reason"]
    assert below("masks") == ["a.png"]
    assert segment("photos")["done"] == 2


def test_an_image_too_large_for_the_memory_fails_alone(
    workspace: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs(workspace / "photos", "a.png", "large.png")
    read = images.read

    def exhausted(path: Path) -> NDArray[np.uint8]:
        if path.name == "large.png":
            raise MemoryError
        return read(path)

    monkeypatch.setattr(images, "read", exhausted)
    sources, _ = run.find(["photos"], leave_out=Path("masks"))
    summary = run.run(engine, sources, Path("masks"), overlay=False, done=lambda: None)
    assert summary.done == 1
    assert summary.failed == [("photos/large.png", "photos/large.png is too large for the memory there is.")]


def test_every_file_moves_the_bar(workspace: Path, engine: Engine) -> None:
    photographs(workspace / "photos", "a.png", "b.png", "c.png")
    (workspace / "photos/b.png").write_bytes(b"")
    sources, _ = run.find(["photos"], leave_out=Path("masks"))
    moved: list[None] = []
    run.run(engine, sources, Path("masks"), overlay=False, done=lambda: moved.append(None))
    assert len(moved) == 3


def test_a_defect_in_a_worker_is_raised(workspace: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that dies alone would leave its images unanswered for."""
    photographs(workspace / "photos", *(f"{index}.png" for index in range(20)))
    monkeypatch.setattr(images, "mask_png", lambda *_: 1 / 0)
    sources, _ = run.find(["photos"], leave_out=Path("masks"))
    with pytest.raises(ZeroDivisionError):
        run.run(engine, sources, Path("masks"), overlay=False, done=lambda: None)


# What goes wrong


@pytest.mark.parametrize("out", ["file", "file/masks"])
def test_an_out_that_cannot_be_written_ends_the_run(run: Run, workspace: Path, out: str) -> None:
    photographs(workspace / "photos", "a.jpg", "b.jpg")
    (workspace / "file").write_text("in the way")
    refused = run("infer", "photos", *ORT, "--out", out)
    assert refused.code == (2 if out == "file" else 3)
    assert (refused.out, refused.err.count("\n")) == ("", 2)
    assert refused.err.startswith("Error: ")
    assert (workspace / "file").read_text() == "in the way"


def test_a_loop_as_out_ends_the_run(run: Run, workspace: Path) -> None:
    photographs(workspace / "photos", "a.jpg")
    (workspace / "loop").symlink_to("loop")
    refused = run("infer", "photos", *ORT, "--out", "loop")
    assert (refused.code, refused.out, refused.err.count("\n")) == (3, "", 2)


def test_a_full_disk_ends_the_run_with_whole_masks(run: Run, workspace: Path, small_disk: Path) -> None:
    links(workspace / "photos", 40, height=60, width=80)
    ended = run("infer", "photos", *ORT, "--out", small_disk / "masks")
    assert (ended.code, ended.out) == (3, "")
    what, remedy = ended.err.splitlines()
    assert what.startswith(f"Error: cannot write {small_disk}/masks/")
    assert what.endswith(": No space left on device.")
    assert remedy == "Free some space on that disk; nothing was lost, run the command again."
    written = list((small_disk / "masks").iterdir())
    assert 0 < len(written) < 40
    assert all(indices(mask).shape == (60, 80) for mask in written)


def test_a_disk_that_fills_up_ends_the_run(workspace: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, where no small disk can be mounted."""
    links(workspace / "photos", 40, height=60, width=80)
    write = Path.write_bytes
    left = iter(range(10))

    def filling(path: Path, data: bytes) -> int:
        if next(left, None) is None:
            write(path, data[:20])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", filling)
    sources, _ = run.find(["photos"], leave_out=Path("masks"))
    with pytest.raises(InvalidFileError, match="No space left on device"):
        run.run(engine, sources, Path("masks"), overlay=False, done=lambda: None)
    written = list(Path("masks").iterdir())
    assert len(written) == 10
    assert all(indices(mask).shape == (60, 80) for mask in written)


def test_ctrl_c_leaves_whole_masks_and_a_report(workspace: Path) -> None:
    links(workspace / "photos", MANY, height=1200, width=1600)
    code, out, err = cut_off(signal.SIGINT, after=5)
    report = json.loads(out)
    assert code == 130
    assert err.splitlines()[-1] == "Interrupted; what was finished is kept."
    assert "Traceback" not in err
    assert report["interrupted"] is True
    assert 5 <= report["done"] < MANY
    assert len(below("masks")) == report["done"]
    assert all(indices(Path("masks", name)).shape == (1200, 1600) for name in below("masks"))


def test_ctrl_c_at_any_moment_stops_the_workers(
    workspace: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that go on without their caller would keep the program from ending."""
    links(workspace / "photos", MANY, height=60, width=80)
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        started.append(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    sources, _ = run.find(["photos"], leave_out=Path("masks"))
    try:
        summary = run.run(engine, sources, Path("masks"), overlay=False, done=lambda: None)
    except KeyboardInterrupt:
        pytest.fail("the run left its workers alone")
    assert summary.interrupted
    assert summary.done < MANY
    assert [thread.is_alive() for thread in started] == [False]


def test_a_killed_run_leaves_no_half_mask_under_a_name(workspace: Path) -> None:
    """What was being written is hidden, and no image."""
    links(workspace / "photos", MANY, height=1200, width=1600)
    code, out, _ = cut_off(signal.SIGKILL, after=5)
    assert (code, out) == (-signal.SIGKILL, "")
    named = [name for name in below("masks") if not name.startswith(".")]
    assert 5 <= len(named) < MANY
    assert all(indices(Path("masks", name)).shape == (1200, 1600) for name in named)
    assert found("masks", out="elsewhere")[0] == named


# Real images


@pytest.mark.usefixtures("workspace")
def test_every_odd_image_is_answered_for(run: Run, segdeploy_data: Path) -> None:
    done = run("infer", segdeploy_data / "odd_images", *ORT, "--json")
    report = done.json()
    assert done.code == 5
    assert report["done"] + len(report["failed"]) + report["skipped"] == 46
    assert report["skipped"] <= 2
    assert len(below("masks")) == report["done"] > 30


@pytest.mark.slow
@pytest.mark.usefixtures("workspace")
def test_every_camera_photograph_is_done(run: Run, segdeploy_data: Path) -> None:
    done = run("infer", segdeploy_data / "photos", *ORT, "--overlay", "--json")
    report = done.json()
    assert (done.code, report["done"], report["skipped"], report["failed"]) == (0, 13, 0, [])
    for photo in (segdeploy_data / "photos").iterdir():
        assert indices(Path("masks", f"{photo.stem}.png")).shape == images.read(photo).shape[:2]


def grown_mb(folder: Path) -> float:
    """Peak memory above the loaded engine, the median of three processes."""
    return statistics.median(
        float(subprocess.run([sys.executable, "-c", MEMORY, folder], check=True, capture_output=True).stdout)
        for _ in range(3)
    )


def linked(folder: Path, files: Sequence[Path]) -> Path:
    folder.mkdir()
    for file in files:
        (folder / file.name).symlink_to(file)
    return folder


def pixels(path: Path) -> int:
    with Image.open(path) as image:
        return image.width * image.height


@pytest.mark.slow
def test_memory_does_not_grow_with_the_folder(workspace: Path, segdeploy_data: Path) -> None:
    every = sorted((segdeploy_data / "nuclei/images").iterdir())
    assert len(every) == 580
    largest = max(every, key=pixels)
    some = [largest, *[image for image in every[::10] if image != largest][:57]]
    assert len(some) == 58
    few, many = (grown_mb(linked(workspace / name, files)) for name, files in (("few", some), ("many", every)))
    assert many <= max(LARGEST_GROWTH * few, few + GROWTH_MB), f"{few:.0f} MB for 58 images, {many:.0f} MB for 580"
