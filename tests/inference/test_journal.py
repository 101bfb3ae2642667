"""The journal: what it holds is found again, and what was cut off or damaged costs its own image alone."""

import dataclasses
import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.inference import journal
from segdeploy.inference.journal import Entry, FileState, Journal
from segdeploy.inference.options import Shard

ALL = Shard(1, 1)

STATE = FileState("ab" * 32, 10, 11, 12, 13)
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=12)


# Lines that somebody wrote by hand.
WRONG_TYPES = [
    b'{"target":"b","source":"b.jpg","input":["0",1,1,1,1],"made_with":"x","written":{},' + rest
    for rest in (b'"areas":"abc"}', b'"areas":[],"failed":7}', b'"areas":["1"]}', b'"seconds":"1"}')
]
WRONG_TYPES += [line.replace(b'"b"', target, 1) for line in WRONG_TYPES[:1] for target in (b"7", b'"\\ud800"')]


def entry(target: str, made_with: str = "engine", failed: str | None = None) -> Entry:
    return Entry(
        target=target,
        source=f"photos/{target}.jpg",
        input=STATE,
        made_with=made_with,
        written={"mask": dataclasses.replace(STATE, size=len(target))},
        failed=failed,
        seconds=0.25,
    )


def filled(folder: Path, *entries: Entry) -> Path:
    with journal.opened(folder, ALL) as opened:
        for each in entries:
            opened.add(each)
    return journal.folder(folder, ALL) / journal.NAME


@given(target=NAMES, failed=st.none() | NAMES, made_as=st.dictionaries(NAMES, NAMES))
def test_a_line_holds_all_of_an_entry(target: str, failed: str | None, made_as: dict[str, str]) -> None:
    written = dataclasses.replace(entry(target, failed=failed), made_as=made_as)
    line = written.line()
    assert line.count(b"\n") == 1
    assert Entry.of(line) == written


def test_a_name_of_any_bytes_is_found_again(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9\n\xff")
    filled(tmp_path, entry(name), entry("b"))
    with journal.opened(tmp_path, ALL) as opened:
        assert opened.get(name) == entry(name)
        assert opened.get("c") is None


def test_the_latest_line_of_an_image_counts(tmp_path: Path) -> None:
    filled(tmp_path, entry("a", "first"), entry("b", "first"), entry("a", "second"))
    with journal.opened(tmp_path, ALL) as opened:
        assert [opened.get(name) for name in ("a", "b")] == [entry("a", "second"), entry("b", "first")]


def test_two_images_whose_hashes_meet_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_hash", lambda _: 7)
    filled(tmp_path, entry("a"), entry("b"), entry("c"))
    with journal.opened(tmp_path, ALL) as opened:
        assert [opened.get(name) for name in ("a", "b", "c", "d")] == [entry("a"), entry("b"), entry("c"), None]


def test_a_last_line_cut_off_at_any_length_costs_its_image_alone(tmp_path: Path) -> None:
    """As a power cut leaves it: what was whole stays, and the next line is whole again."""
    path = filled(tmp_path, entry("a"), entry("b"))
    whole = path.read_bytes()
    first = len(entry("a").line())
    for length in range(first, len(whole)):
        path.write_bytes(whole[:length])
        filled(tmp_path, entry("c"))
        assert path.read_bytes() == entry("a").line() + entry("c").line()
        with journal.opened(tmp_path, ALL) as opened:
            assert [opened.get(name) for name in ("a", "b", "c")] == [entry("a"), None, entry("c")]


@pytest.mark.parametrize(
    "damage",
    [b"\0" * 40, b"{}", b"[]", b'{"target": "b"}', b"\xff\xfe", b"[" * 100_000, b'{"written": 1}', *WRONG_TYPES],
)
def test_a_damaged_line_between_others_is_passed_over(tmp_path: Path, damage: bytes) -> None:
    path = filled(tmp_path, entry("a"))
    path.write_bytes(entry("a").line() + damage + b"\n" + entry("c").line())
    with journal.opened(tmp_path, ALL) as opened:
        assert [opened.get(name) for name in ("a", "b", "c")] == [entry("a"), None, entry("c")]


def test_a_journal_of_replaced_lines_is_shortened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_SPARE_LINES", 2)
    path = filled(tmp_path, *(entry(name, f"engine {turn}") for turn in range(5) for name in "ab"))
    assert len(path.read_bytes().splitlines()) == 10
    with journal.opened(tmp_path, ALL) as opened:
        assert [opened.get(name) for name in "ab"] == [entry(name, "engine 4") for name in "ab"]
    assert path.read_bytes() == entry("a", "engine 4").line() + entry("b", "engine 4").line()


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write

    def full(file: int, data: bytes) -> int:
        write(file, data[:20])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with journal.opened(tmp_path, ALL) as opened:
        opened.add(entry("a"))
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", full)
            with pytest.raises(InvalidFileError, match="No space left on device"):
                opened.add(entry("b"))
        opened.add(entry("c"))
    assert (journal.folder(tmp_path, ALL) / journal.NAME).read_bytes() == entry("a").line() + entry("c").line()


def test_a_folder_belongs_to_one_run_or_to_shards(tmp_path: Path) -> None:
    """A run of everything beside a shard would do the same images, perhaps with another engine."""
    first, second = Shard(1, 2), Shard(2, 2)
    for held, refused, beside in ((ALL, (ALL, first), ()), (first, (ALL, first), (second,))):
        with journal.opened(tmp_path, held):
            for shard in refused:
                with (
                    pytest.raises(InvalidRequestError, match="another run writes into"),
                    journal.opened(tmp_path, shard),
                ):
                    pytest.fail("two runs in one folder")
            for shard in beside:
                with journal.opened(tmp_path, shard):
                    pass
    with journal.opened(tmp_path, ALL):
        pass


def test_what_shards_did_is_known_to_another_division(tmp_path: Path) -> None:
    with journal.opened(tmp_path, Shard(1, 2)) as opened:
        opened.add(entry("a"))
    filled(tmp_path, entry("b"))
    with journal.others(tmp_path, Shard(1, 3)) as found:
        assert [[each.get(name) is not None for name in "ab"] for each in found] == [[True, False], [False, True]]
    with journal.others(tmp_path, ALL) as found:
        assert [each.get("a") for each in found] == [entry("a")]


def test_where_a_file_system_knows_no_locks_all_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("segdeploy.locks.fcntl.flock", unknown)
    filled(tmp_path, entry("a"))
    with journal.opened(tmp_path, ALL) as opened:
        assert opened.get("a") == entry("a")


def test_what_is_only_read_is_left_as_it_is(tmp_path: Path) -> None:
    with journal.only_read(tmp_path / "none") as opened:
        assert opened.get("a") is None
    assert not (tmp_path / "none").exists()
    path = filled(tmp_path, entry("a"))
    path.write_bytes(path.read_bytes() + b"torn")
    with journal.only_read(journal.folder(tmp_path, ALL)) as opened:
        assert opened.get("a") == entry("a")
        with pytest.raises(ValueError, match="only read"):
            opened.add(entry("b"))
    assert path.read_bytes().endswith(b"torn")


# Files as they were


def test_a_file_is_the_same_by_its_facts_or_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"first")
    state = FileState.of(path)
    assert state is not None
    assert state.now(path) == state
    os.utime(path, ns=(1, 1))
    touched = state.now(path)
    assert touched is not None
    assert (touched.sha256, touched.mtime_ns) == (state.sha256, 1)
    path.write_bytes(b"other")
    assert state.now(path) is None
    path.write_bytes(b"longer than before")
    assert state.now(path) is None
    path.unlink()
    assert state.now(path) is None


def test_only_reading_finds_bytes_that_changed_behind_the_facts(tmp_path: Path) -> None:
    """A disk that went bad: `--verify` is for that."""
    path = tmp_path / "a"
    path.write_bytes(b"first")
    state = FileState.of(path)
    assert state is not None
    as_if = dataclasses.replace(state, sha256="0" * 64)
    assert as_if.now(path) == as_if
    assert as_if.now(path, verify=True) is None
    assert state.now(path, verify=True) == state


def test_a_pipe_and_a_folder_have_no_state(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert FileState.of(tmp_path / "pipe") is None
    assert FileState.of(tmp_path) is None
    assert FileState.of(tmp_path / "none") is None


# Shards


@given(names=st.lists(NAMES, unique=True), count=st.integers(1, 9))
def test_every_name_is_of_one_shard(names: list[str], count: int) -> None:
    shards = [Shard(index, count) for index in range(1, count + 1)]
    for name in names:
        assert sum(shard.has(name) for shard in shards) == 1


def test_shards_are_about_as_large() -> None:
    counts = [sum(Shard(index, 4).has(f"photo {number}") for number in range(4000)) for index in range(1, 5)]
    assert sum(counts) == 4000
    assert all(900 < count < 1100 for count in counts)


@pytest.mark.parametrize("text", ["", "0/3", "4/3", "1", "1/0", "a/b", "1/3/5", "-1/3", "1/ 3"])
def test_no_other_text_is_a_shard(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="is no shard"):
        Shard.parse(text)


def test_the_lines_are_found_by_offset_and_not_kept(tmp_path: Path) -> None:
    """24 bytes an image: a hundred thousand lines take 45 MB as text."""
    filled(tmp_path, *(entry(str(number)) for number in range(300)))
    opened = Journal(journal.folder(tmp_path, ALL) / journal.NAME, writes=False)
    held = [value for value in vars(opened).values() if hasattr(value, "nbytes")]
    assert sum(value.nbytes for value in held) == 24 * 300
    opened.close()


def test_a_line_of_a_later_version_is_read(tmp_path: Path) -> None:
    path = filled(tmp_path, entry("a"))
    path.write_bytes(entry("a").line().replace(b'{"target"', b'{"more":{"x":[1]},"target"'))
    with journal.opened(tmp_path, ALL) as opened:
        assert opened.get("a") == entry("a")


def test_what_was_added_is_brought_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    filled(tmp_path, entry("a"))
    assert len(synced) == 1
