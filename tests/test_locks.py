"""What a killed process leaves goes with the next one; what a living one writes stays."""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from segdeploy import artifact, locks
from segdeploy.errors import InvalidFileError

HELD = """
import sys, time
from pathlib import Path
from segdeploy import artifact
with artifact.replacing(Path(sys.argv[1])) as part:
    part.write_bytes(b"half")
    print("held", flush=True)
    sys.stdin.read()
    part.write_bytes(b"whole")
"""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has written half of a file, and writes the rest when its stdin ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HELD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def parts(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if locks.PART.fullmatch(path.name)]


@pytest.fixture(autouse=True)
def _a_new_process() -> None:
    """A folder is swept once in a process; every test is one."""
    locks._sweep.cache_clear()  # noqa: SLF001 - the only way to be another process without starting one


def test_the_part_of_a_killed_process_is_removed_by_the_next(tmp_path: Path) -> None:
    with writing(tmp_path / "file") as process:
        process.send_signal(signal.SIGKILL)
    (left,) = parts(tmp_path)
    assert left.read_bytes() == b"half"
    artifact.write_atomically(tmp_path / "other", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_the_part_of_a_process_at_work_stays(tmp_path: Path) -> None:
    with writing(tmp_path / "file") as process:
        artifact.write_atomically(tmp_path / "other", b"new")
        assert [path.read_bytes() for path in parts(tmp_path)] == [b"half"]
        process.communicate()
    assert process.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "other"]
    assert (tmp_path / "file").read_bytes() == b"whole"


def test_the_part_of_another_thread_stays(tmp_path: Path) -> None:
    with artifact.replacing(tmp_path / "file") as part:
        part.write_bytes(b"half")
        locks._sweep.cache_clear()  # noqa: SLF001 - see above
        other = threading.Thread(target=artifact.write_atomically, args=(tmp_path / "other", b"new"))
        other.start()
        other.join()
        assert parts(tmp_path) == [part]
    assert (tmp_path / "file").read_bytes() == b"half"


@pytest.mark.parametrize(
    "name", ["a.part", ".part", ".0123456789abcdef.parts", ".0123456789ABCDEF.part", ".0123456789abcde.part", "x.tmp"]
)
def test_files_of_others_stay(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"theirs")
    artifact.write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / name).read_bytes() == b"theirs"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_bytes(b"theirs")
    (tmp_path / f".{'0' * 16}.part").symlink_to("theirs")
    artifact.write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "theirs").read_bytes() == b"theirs"


def test_a_part_that_is_swept_before_it_is_owned_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between `open` and `flock` nobody owns it."""
    flock = fcntl.flock
    swept: list[Path] = []

    def late(descriptor: int, how: int) -> None:
        if not swept:
            swept.extend(parts(tmp_path))
            swept[0].unlink()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    artifact.write_atomically(tmp_path / "file", b"new")
    assert len(swept) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_files_are_written_and_parts_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Nobody can tell whose they are."""
    left = tmp_path / f".{'0' * 16}.part"
    left.write_bytes(b"half")

    def unknown(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", unknown)
    artifact.write_atomically(tmp_path / "file", b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [left.name, "file"]
    with pytest.raises(OSError, match=os.strerror(code)), locks.owned(tmp_path / "mine"):
        pass


def test_another_failure_to_lock_is_none_to_pass_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(InvalidFileError, match="Input/output error"):
        artifact.write_atomically(tmp_path / "file", b"new")


def test_what_is_owned_is_nobody_elses(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    with locks.owned(path):
        with pytest.raises(BlockingIOError), locks.owned(path):
            pass
        assert path.is_file()
    assert not path.exists()
    with locks.owned(path):
        assert path.is_file()


def test_what_a_killed_process_owned_can_be_owned(tmp_path: Path) -> None:
    script = "import os, sys; from pathlib import Path; from segdeploy import locks\n"
    script += "with locks.owned(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "mine"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "mine").exists()
    with locks.owned(tmp_path / "mine"):
        pass
    assert list(tmp_path.iterdir()) == []
