"""What goes wrong in the processes that read images ends the training in two lines."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from command_line import without_header
from conftest import COMMAND, Run, photographs
from PIL import Image

from segdeploy.data.dataset import Picture
from segdeploy.errors import InvalidFileError, MissingRuntimeError
from segdeploy.spec import Spec
from segdeploy.training import data
from segdeploy.training.options import Augmentation

SPEC = Spec("unet", {}, ("dark", "bright"), ((0, 0, 0), (255, 255, 255)), 32, 32)
SMALL = ("--model", "unet", "--option", "multiplier=0.0625", "--size", "64x64")
TRAIN = ("train", *SMALL, "--epochs", "1", "--batch", "2", "--workers", "2", "--threads", "1")


def samples(folder: Path) -> data.TrainingData:
    """Six images, each its own truth of class 1."""
    photographs(folder, *(f"{index}.png" for index in range(6)))
    Image.fromarray(np.ones((60, 80), np.uint8)).save(folder / "truth.png")
    pictures = [Picture(folder / f"{index}.png", folder / "truth.png") for index in range(6)]
    return data.TrainingData(pictures, SPEC, Augmentation((32, 32)), seed=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_whole_and_all_there(tmp_path: Path, workers: int) -> None:
    shapes = [
        (tuple(photos.shape), tuple(truth.shape))
        for photos, truth in data.batches(data.loader(samples(tmp_path), batch=2, workers=workers))
    ]
    assert shapes == [((2, 32, 32, 3), (2, 32, 32))] * 3


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_is_the_same_error_in_every_process(tmp_path: Path, workers: int) -> None:
    """PyTorch makes a RuntimeError of it, its text a traceback."""
    pictures = samples(tmp_path)
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:300])
    with pytest.raises(InvalidFileError) as refused:
        list(data.batches(data.loader(pictures, batch=2, workers=workers)))
    assert refused.value.what == f"{tmp_path / '3.png'} cannot be read: image file is truncated."
    assert refused.value.remedy == "Replace the file, or save it anew as PNG or JPEG."


def test_a_process_that_is_killed_is_said_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel does where the memory has run out."""
    here = os.getpid()

    def killed(*_: object) -> None:
        assert os.getpid() != here
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(data.TrainingData, "pair", killed)
    with pytest.raises(MissingRuntimeError, match="a process that reads images has ended") as refused:
        list(data.batches(data.loader(samples(tmp_path), batch=2, workers=1)))
    assert refused.value.remedy == "Give fewer --workers, or 0: the memory may have run out."


def test_a_defect_in_a_process_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two lines would hide where it is."""
    monkeypatch.setattr(data.TrainingData, "pair", lambda *_: [].pop())
    with pytest.raises(IndexError, match="pop from empty list"):
        list(data.batches(data.loader(samples(tmp_path), batch=2, workers=1)))


def test_the_command_ends_in_two_lines(run: Run, labelled: Path, tmp_path: Path) -> None:
    (labelled / "images/3.png").write_bytes((labelled / "images/3.png").read_bytes()[:300])
    ended = run(*TRAIN, "--data", labelled, "--out", tmp_path / "out")
    assert (ended.code, ended.out) == (3, "")
    assert without_header(ended.err).splitlines() == [
        f"Error: {labelled}/images/3.png cannot be read: image file is truncated.",
        "Replace the file, or save it anew as PNG or JPEG.",
    ]


def test_too_little_shared_memory_is_two_lines(labelled: Path, tmp_path: Path) -> None:
    """A container has 64 MB of it, unless it is told otherwise; PyTorch's processes die of a bus error."""
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("only root may give a process a /dev/shm of its own")
    script = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"'
    mounted: list[str | Path] = [unshare, "-m", "sh", "-c", script, "sh"]
    command: list[str | Path] = [COMMAND, *TRAIN, "--data", labelled, "--out", tmp_path / "out", "--size", "256x256"]
    ended = subprocess.run([*mounted, *command], capture_output=True, text=True, check=False, timeout=300)
    assert (ended.returncode, ended.stdout) == (3, "")
    assert without_header(ended.stderr).splitlines() == [
        "Error: the processes that read images ran out of shared memory (/dev/shm).",
        "Give --workers 0, or more of it: docker run --shm-size=1g.",
    ]
