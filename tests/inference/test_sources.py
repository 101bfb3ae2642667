"""Which images are found, and where what is made of them goes: none twice, none lost, none written over."""

import os
import shutil
from pathlib import Path

import pytest
from conftest import Run, as_ordinary_user, photographs
from inference_folders import AGAIN, ORT, WITH_OVERLAYS, below, found, segment

from segdeploy import api
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.inference import sources

# What is taken


def test_a_folder_is_taken_with_all_below_it_in_order(workspace: Path) -> None:
    photographs(workspace / "photos", "b.jpg", "a.PNG", "sub/deep/c.webp", "sub/a.tif")
    (workspace / "photos/notes.txt").write_text("no list: it lies in a folder")
    (workspace / "photos/sub/noending").write_text("")
    assert found("photos") == (["a.PNG", "b.jpg", "sub/a.tif", "sub/deep/c.webp"], 2)


def test_what_a_system_left_is_no_photograph(workspace: Path) -> None:
    """`._a.jpg` of a Mac's archive is no image, and has the ending of one."""
    photographs(workspace / "photos", "a.jpg", "sub/b.jpg", ".hidden/c.jpg", "__MACOSX/d.jpg", ".e.jpg")
    for name in ("._a.jpg", ".DS_Store", "Thumbs.db", "sub/._b.jpg", "sub/desktop.ini", "__MACOSX/._a.jpg"):
        (workspace / "photos" / name).write_bytes(b"Mac OS X")
    assert found("photos") == (["a.jpg", "sub/b.jpg"], 0)
    assert found("photos/*.jpg") == (["a.jpg"], 0)


@pytest.mark.parametrize("named", [".hidden/c.jpg", ".hidden", ".hidden/*.jpg"])
def test_what_is_hidden_is_taken_by_its_own_name(workspace: Path, named: str) -> None:
    photographs(workspace, ".hidden/c.jpg")
    assert found(named) == (["c.jpg"], 0)


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
    assert found("photos/list.txt") == (["a.jpg", "sub/b.jpg", "notes.md"], 0)  # which fails when it is read


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


def test_an_unreadable_folder_is_not_passed_over(workspace: Path) -> None:
    """Its files would be missing without a word: it is taken for an image, and fails. An input itself is refused."""
    workspace.chmod(0o755)
    photographs(workspace / "photos", "a.jpg", "locked/b.jpg")
    (workspace / "photos/locked").chmod(0)
    with as_ordinary_user():
        assert found("photos") == (["a.jpg", "locked"], 0)
        with pytest.raises(InvalidFileError) as refused:
            sources.find(["photos/locked"], leave_out=Path("masks"))
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
    assert (report.done, report.skipped) == (3, 0)
    assert [Path(failure.path).name for failure in report.failed] == ["dangling.jpg", "x.jpg", "y.jpg"]
    assert below("masks") == ["a.png", "link.png", "sub/b.png"]


# Where masks go


def test_masks_keep_the_paths_of_their_images(workspace: Path) -> None:
    photographs(workspace / "photos", "a.jpg", "sub/a.jpg", "sub/deep/c.png")
    segment("photos")
    assert below("masks") == ["a.png", "sub/a.png", "sub/deep/c.png"]


@pytest.mark.parametrize("absolute", [False, True])
def test_a_list_never_writes_outside_out(workspace: Path, *, absolute: bool) -> None:
    photographs(workspace, "elsewhere/a.jpg", "lists/near/b.jpg")
    lines = ["../elsewhere/a.jpg", "near/../near/b.jpg"]
    lines = [str(workspace / "lists" / line) for line in lines] if absolute else lines
    (workspace / "lists/list.txt").write_text("\n".join(lines))
    before = below(workspace)
    assert segment("lists/list.txt", out="out/masks").done == 2
    assert below("out/masks") == ["elsewhere/a.png", "lists/near/b.png"]
    assert sorted({*before, *(f"out/masks/{name}" for name in below("out/masks"))}) == below(workspace)


@pytest.mark.parametrize(
    "named,taken",
    [(".", ["photos/a.jpg", "photos/b.png"]), ("**/*", ["photos/a.jpg", "photos/b.png"]), ("*/*.png", ["b.png"])],
)
def test_the_masks_of_a_first_run_are_no_images_of_the_second(workspace: Path, named: str, taken: list[str]) -> None:
    shutil.rmtree(workspace / "validation")  # images, too
    photographs(workspace / "photos", "a.jpg", "b.png")
    first = segment(".", write=WITH_OVERLAYS)
    written = below("masks") + below("masks-overlays")
    assert found(named)[0] == taken
    second = segment(".", write=WITH_OVERLAYS, how=AGAIN)
    assert (first.done, first.skipped) == (second.done, second.skipped)
    assert below("masks") + below("masks-overlays") == written


def test_masks_behind_a_link_are_no_images_either(workspace: Path) -> None:
    """The overlays lie beside the link."""
    shutil.rmtree(workspace / "validation")  # images, too
    photographs(workspace / "photos", "a.jpg")
    (workspace / "real").mkdir()
    (workspace / "masks").symlink_to("real")
    for _ in range(2):
        assert segment(".", write=WITH_OVERLAYS, how=AGAIN).done == 1
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
        segment("masks-overlays/a.jpg", write=WITH_OVERLAYS)
    assert (workspace / "masks-overlays/a.jpg").read_bytes() == before


def test_a_mask_may_lie_beside_its_photograph(workspace: Path) -> None:
    photographs(workspace, "photo.jpg")
    for _ in range(2):
        assert segment("photo.jpg", out=".", how=AGAIN).done == 1
    assert (workspace / "photo.png").is_file()


def test_overlays_of_the_working_directory_have_a_name(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photographs(workspace / "photos", "a.jpg")
    (workspace / "here").mkdir()
    monkeypatch.chdir(workspace / "here")
    api.infer(["../photos"], out=Path(), model=workspace / "export/unet.fp32.onnx", write=WITH_OVERLAYS)
    assert below(workspace / "here") == ["a.png"]
    assert below(workspace / "here-overlays") == ["a.jpg"]


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


# What segdeploy wrote itself


@pytest.mark.parametrize("named", ["old", "old/*", "**/old*/*", "list.txt"])
def test_earlier_masks_and_overlays_are_no_photographs(workspace: Path, named: str) -> None:
    """Wherever they lie by now, and whatever they are called."""
    photographs(workspace / "photos", "a.jpg", "b.png")
    segment("photos", out="old", write=WITH_OVERLAYS)
    (workspace / "old-overlays/a.jpg").rename(workspace / "old/a overlay.jpeg")
    (workspace / "list.txt").write_text("\n".join(f"old/{name}" for name in below("old")))
    with pytest.raises(InvalidRequestError) as refused:
        segment(named)
    assert refused.value.what == f"there is nothing but masks and overlays of segdeploy in {named}."
    photographs(workspace / "old", "c.png")
    with (workspace / "list.txt").open("a") as names:
        names.write("\nold/c.png")
    report = segment(named)
    assert (report.done, report.failed) == (1, ())
    assert report.skipped >= 3


def test_a_pipe_is_not_waited_for(workspace: Path) -> None:
    photographs(workspace / "photos", "a.jpg")
    os.mkfifo(workspace / "photos/pipe.png")
    assert found("photos") == (["a.jpg", "pipe.png"], 0)
