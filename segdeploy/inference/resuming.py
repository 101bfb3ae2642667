"""What need not be done again: the same file, the same engine and options, and what was made of it still there."""

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from segdeploy.inference.journal import Entry, FileState, Journal
from segdeploy.inference.naming import Place
from segdeploy.inference.options import FolderOptions
from segdeploy.inference.source_list import Source


@dataclasses.dataclass(frozen=True, slots=True)
class Standing:
    """Where an image stands: the kinds of output that are `missing`, and the `entry` that holds for the others.

    `failed`: why nothing could be made of the very same file before; then nothing is missing.
    """

    missing: tuple[str, ...]
    entry: Entry | None = None
    failed: str | None = None


class Resuming:
    """Compares images with the journal of earlier runs. `made_with`: the digest of what draws the masks now."""

    def __init__(self, journal: Journal, made_with: str, places: Mapping[str, Place], options: FolderOptions) -> None:
        self._journal = journal
        self._made_with = made_with
        self._places = places
        self._options = options
        self._lock = threading.Lock()
        self._begun = 0

    def standing(self, source: Source, target: PurePath) -> Standing:
        """Where it stands. What was copied or touched and has the same bytes is unchanged, and noted anew."""
        entry = None if self._options.again else self._journal.get(str(target))
        seen = None if entry is None else entry.input.now(source.path, verify=self._options.verify)
        if entry is None or seen is None or entry.made_with != self._made_with:
            return Standing(tuple(self._places))
        if entry.failed is not None:
            return Standing(tuple(self._places)) if self._options.retry_failed else Standing((), entry, entry.failed)
        there = self._there(entry, target)
        now = dataclasses.replace(entry, input=seen, written={**entry.written, **there})
        missing = tuple(kind for kind in self._places if kind not in there)
        if not missing and now != entry and not self._options.dry_run:
            self._journal.add(now)
        return Standing(missing, now)

    def _there(self, entry: Entry, target: PurePath) -> dict[str, FileState]:
        """The files of the kinds asked for that are as they were written."""
        found = {}
        for kind, place in self._places.items():
            if (state := entry.written.get(kind)) is not None:
                seen = state.now(place.file(target), verify=self._options.verify)
                if seen is not None:
                    found[kind] = seen
        return found

    def may_begin(self) -> bool:
        """Whether the limit lets one more image be segmented; counts it."""
        with self._lock:
            if self._options.limit is not None and self._begun >= self._options.limit:
                return False
            self._begun += 1
            return True

    def note(
        self,
        source: Source,
        target: PurePath,
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
                target=str(target),
                source=str(source.path),
                input=read,
                made_with=self._made_with,
                written=written,
                areas=areas,
                failed=failed,
                seconds=seconds,
            )
        )
