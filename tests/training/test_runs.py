"""A run has one owner at a time: two trainings into one folder mixed their files, and lost the better network."""

import dataclasses
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import without_header
from conftest import Run
from hypothesis import given
from hypothesis import strategies as st

from segdeploy import api
from segdeploy.checkpoints import checkpoint
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.names import require_name, require_new_name
from segdeploy.training.options import Augmentation, SilentTraining, TrainOptions

OPTIONS = TrainOptions(Augmentation((32, 32)), epochs=1, batch=3)
KINDS = (".last.safetensors", ".log.jsonl", ".safetensors")
SMALL = ("--model", "unet", "--size", "32x32", "--option", "multiplier=0.0625", "--epochs", "1", "--batch", "3")
OWNER = """
import sys
from pathlib import Path
from segdeploy import locks
with locks.owned(Path(sys.argv[1])):
    print("owned", flush=True)
    sys.stdin.read()
"""


class Meanwhile(SilentTraining):
    """Does something during the first step of a training."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._acts = iter([act])

    def step(self, *, epoch: int, loss: float, miou: float | None) -> None:
        del epoch, loss, miou
        for act in itertools.islice(self._acts, 1):
            act()


def train(data: Path, out: Path, *, options: TrainOptions = OPTIONS, **more: Any) -> Path:  # noqa: ANN401 - of `api.train`
    return api.train("unet", data=data, out=out, size=(32, 32), variant={"multiplier": 0.0625}, options=options, **more)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", [None, "night"])
def test_the_second_training_of_a_run_is_refused_and_touches_nothing(
    labelled: Path, tmp_path: Path, name: str | None, *, resume: bool
) -> None:
    out = tmp_path / "out"
    seen: list[str] = []

    def second() -> None:
        before = contents(out)
        with pytest.raises(InvalidRequestError) as refused:
            train(labelled, out, name=name, resume=resume)
        assert contents(out) == before
        seen.append(str(refused.value))

    first = train(labelled, out, name=name, progress=Meanwhile(second))
    what = f"another process is training {name or 'unet'} in {out}."
    assert seen == [f"{what}\nWait for it, or give this run another --name or --out."]
    assert sorted(contents(out)) == [f"{first.stem}{kind}" for kind in KINDS]


def test_two_runs_of_one_folder_have_their_own_files(labelled: Path, tmp_path: Path) -> None:
    out, alone = tmp_path / "out", tmp_path / "alone"
    other = dataclasses.replace(OPTIONS, seed=1)
    train(labelled, out, progress=Meanwhile(lambda: train(labelled, out, name="night", options=other)))
    assert sorted(contents(out)) == [f"{name}{kind}" for name in ("night", "unet") for kind in KINDS]
    train(labelled, alone, name="night", options=other)
    origins = [checkpoint.read(folder / "night.safetensors").origin for folder in (out, alone)]
    assert origins[0] == origins[1]


def test_a_run_of_another_name_is_resumed_by_it(labelled: Path, tmp_path: Path) -> None:
    best = train(labelled, tmp_path / "out", name="night")
    assert best == tmp_path / "out/night.safetensors"
    assert train(labelled, tmp_path / "out", name="night", resume=True) == best
    with pytest.raises(InvalidRequestError, match="nothing to resume"):
        train(labelled, tmp_path / "out", resume=True)


def test_the_command_says_who_owns_the_run(run: Run, labelled: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, tmp_path / "out/.night.lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        refused = run("train", *SMALL, "--data", labelled, "--out", tmp_path / "out", "--name", "night")
        owner.communicate()
    assert (refused.code, refused.out) == (2, "")
    assert without_header(refused.err).splitlines() == [
        f"Error: another process is training night in {tmp_path}/out.",
        "Wait for it, or give this run another --name or --out.",
    ]


def test_a_folder_that_cannot_be_written_to_is_two_lines(labelled: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(InvalidFileError, match=r"cannot write .*\.unet\.lock"):
        train(labelled, tmp_path / "out")


@pytest.mark.parametrize("name", ["../night", "a/b", "unet.last", ".hidden", "-x", "_x", "a b", "a\n", "n" * 101, "\0"])
def test_a_name_that_is_no_file_name_of_its_own_is_refused(labelled: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be the name of a run"):
        train(labelled, tmp_path / "out", name=name)
    assert not (tmp_path / "out").exists()


def test_the_name_of_another_network_is_refused(labelled: Path, tmp_path: Path) -> None:
    """`export --model segnet` would look for its weights there."""
    with pytest.raises(InvalidRequestError, match="a run of unet cannot be called segnet"):
        train(labelled, tmp_path / "out", name="segnet")


@given(st.text() | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", fullmatch=True))
def test_a_name_that_is_taken_is_one_step_of_a_path_and_no_suffix(name: str) -> None:
    try:
        require_new_name(name, "a run")
    except InvalidRequestError:
        return
    assert Path(name).parts == (name,)
    assert "." not in name
    assert require_name(name, "a network") == name
