"""What need not be done again: the same file, the same engine and options, and what was made of it still there."""

import dataclasses
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePath

from segdeploy.inference.journal import Entry, FileState, Journal
from segdeploy.inference.source_list import Source
from segdeploy.inference.work import Work


@dataclasses.dataclass(frozen=True, slots=True)
class Standing:
    """Where an image stands: the kinds of output that are `missing`, and the `entry` that holds for the others.

    `failed`: why nothing could be made of the very same file before; then nothing is missing. `ours`: the kinds whose
    files of that name some earlier run wrote. `taken_by`: another photo, which is still there, that they are of.
    """

    missing: tuple[str, ...]
    entry: Entry | None = None
    failed: str | None = None
    ours: Collection[str] = ()
    taken_by: str | None = None


class Resuming:
    """Compares images with the journal of earlier runs, and with those of `others`: other shards of the output."""

    def __init__(self, journal: Journal, others: Sequence[Journal], work: Work) -> None:
        self._journal = journal
        self._others = others
        self._made_with = work.task.made_with
        self._places = work.places
        self._made_as = {kind: writer.made_as for kind, writer in work.writers.items()}
        self._options = work.task.options
        self._lock = threading.Lock()
        self._begun = 0

    def standing(self, source: Source, target: str) -> Standing:
        """Where it stands. What was copied or touched and has the same bytes is unchanged, and noted anew."""
        before = self._journal.get(target)
        entry = before or self._of_others(target)
        everything = Standing(tuple(self._places), ours=() if entry is None else tuple(entry.written))
        if entry is None or self._options.again:
            return everything
        seen = self.now(entry.input, source.path)
        if seen is None and self.is_of_another(entry, source):
            return dataclasses.replace(everything, taken_by=entry.source)
        if seen is None or entry.made_with != self._made_with:
            return everything
        if entry.failed is not None:
            return everything if self._options.retry_failed else Standing((), entry, entry.failed)
        there = self._there(entry, target)
        now = dataclasses.replace(entry, input=seen, written={**entry.written, **there})
        missing = tuple(kind for kind in self._places if kind not in there)
        if not missing and now != before and not self._options.dry_run:
            self._journal.add(now)
        return Standing(missing, now, ours=tuple(entry.written))

    def now(self, state: FileState, path: Path) -> FileState | None:
        """The state of a file that still has the bytes of before; None where it has not, or is gone."""
        return state.now(path, verify=self._options.verify)

    def name(self, source: Source) -> str:
        """What the journal calls it."""
        return str(source.path)

    def is_of_another(self, entry: Entry, source: Source) -> bool:
        """Whether what lies there was made of another photo than this one, and that one is still where it was."""
        other = Path(entry.source)
        try:
            return entry.failed is None and other.is_file() and not other.samefile(source.path)
        except (OSError, ValueError):
            return False

    def _of_others(self, target: str) -> Entry | None:
        return next(filter(None, (other.get(target) for other in self._others)), None)

    def _there(self, entry: Entry, target: str) -> dict[str, FileState]:
        """The files of the kinds asked for that are as they were written, with the same options."""
        found = {}
        for kind, place in self._places.items():
            is_same = entry.made_as.get(kind, "") == self._made_as[kind]
            if is_same and (state := entry.written.get(kind)) is not None:
                seen = self.now(state, place.file(PurePath(target)))
                if seen is not None:
                    found[kind] = seen
        return found

    def is_full(self, at_work: int = 0) -> bool:
        """Whether as many images were segmented as the limit allows, or will be by those at work elsewhere."""
        return self._options.limit is not None and self._begun + at_work >= self._options.limit

    def may_segment(self) -> bool:
        """Whether the limit lets one more image be segmented; counts it. What cannot be read does not count."""
        with self._lock:
            if self.is_full():
                return False
            self._begun += 1
            return True

    def note(
        self,
        source: Source,
        target: str,
        read: FileState,
        *,
        written: Mapping[str, FileState],
        areas: Sequence[int] = (),
        failed: str | None = None,
        seconds: float,
    ) -> None:
        """What was made of a file, or why it cannot be read. Raise SegdeployError where that cannot be written."""
        self._journal.add(
            Entry(
                target=target,
                source=self.name(source),
                input=read,
                made_with=self._made_with,
                written=written,
                made_as=self._as_noted(target, written),
                areas=tuple(areas),
                failed=failed,
                seconds=seconds,
            )
        )

    def _as_noted(self, target: str, written: Mapping[str, FileState]) -> dict[str, str]:
        """`Entry.made_as`: what was asked for, and of a file that is the one of before, what was noted before."""
        before = self._journal.get(target) or self._of_others(target)
        kept = [] if before is None else [kind for kind, state in written.items() if before.written.get(kind) == state]
        found = {**self._made_as, **{kind: before.made_as.get(kind, "") for kind in kept if before is not None}}
        return {kind: found[kind] for kind in written if found[kind]}
