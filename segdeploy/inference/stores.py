"""Object stores by URL: list, read with the ETag, write, and write on condition; obstore does it for all of them."""

import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any, Literal
from urllib.parse import urlsplit

from segdeploy import extras
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.paths import shown

_URL = re.compile(r"(s3|gs|az|memory)://", re.IGNORECASE)


class GoneError(Exception):
    """There is no such object."""


class TakenError(Exception):
    """The condition of a write does not hold: the object is there, or is another by now."""


@dataclasses.dataclass(frozen=True, slots=True)
class Version:
    """What an object was when it was written; another write gives another."""

    etag: str
    version: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Prefix:
    """The objects below a URL; names are relative to it. Errors of the store are InvalidFileError, and name the URL."""

    url: str

    @property
    def _key(self) -> str:
        return urlsplit(self.url).path.strip("/")

    def _of(self, name: str) -> str:
        return "/".join(filter(None, (self._key, name)))

    @property
    def _store(self) -> Any:  # noqa: ANN401 - obstore's
        parts = urlsplit(self.url)
        return _opened(parts.scheme.lower(), parts.netloc)

    def url_of(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url

    def beside(self, suffix: str) -> "Prefix":
        """The prefix whose URL ends with this too."""
        return Prefix(self.url + suffix)

    def listed(self, below: str = "") -> Iterator[tuple[str, str]]:
        """Each object's name and ETag, in any order."""
        import obstore

        folder, cut = self._of(below), len(self._key) + 1 if self._key else 0
        with _named(self.url_of(below)):
            for chunk in obstore.list(self._store, prefix=folder or None):
                yield from ((each["path"][cut:], _etag(each, self.url)) for each in chunk)

    def version(self, name: str) -> Version | None:
        """Of the object of that very name; None where there is none."""
        import obstore

        with _named(self.url_of(name)):
            try:
                found = obstore.head(self._store, self._of(name))
            except FileNotFoundError:
                return None
            return Version(_etag(found, self.url), found["version"])

    def read(self, name: str) -> tuple[bytes, Version]:
        """Raise GoneError where there is no such object."""
        import obstore

        with _named(self.url_of(name)):
            try:
                found = obstore.get(self._store, self._of(name))
                data = bytes(found.bytes())
            except FileNotFoundError as error:
                raise GoneError from error
            return data, Version(_etag(found.meta, self.url), found.meta["version"])

    def write(self, name: str, data: bytes, *, where: "Literal['any', 'none'] | Version" = "any") -> Version:
        """Write an object: whatever is there, where there is none, or over that version. Else raise TakenError."""
        import obstore

        mode: Any = {"any": "overwrite", "none": "create"}.get(where) if isinstance(where, str) else None
        if isinstance(where, Version):
            mode = {"e_tag": where.etag} | ({} if where.version is None else {"version": where.version})
        with _named(self.url_of(name)):
            try:
                put = obstore.put(self._store, self._of(name), data, mode=mode)
            except (obstore.exceptions.AlreadyExistsError, obstore.exceptions.PreconditionError) as error:
                raise TakenError from error
            except FileNotFoundError as error:
                if isinstance(where, Version):
                    raise TakenError from error
                raise
            return Version(_etag(put, self.url), put["version"])

    def remove(self, name: str) -> None:
        import obstore

        with _named(self.url_of(name)):
            obstore.delete(self._store, self._of(name))


def is_url(text: str) -> bool:
    return _URL.match(text) is not None


def prefix(url: str) -> Prefix:
    """Raise InvalidRequestError where a URL names no bucket, MissingRuntimeError without obstore."""
    with extras.named_where_missing():
        import obstore  # noqa: F401 - said before the work
    try:
        parts = urlsplit(url)
        is_one = bool(parts.netloc) and not (parts.query or parts.fragment)
    except ValueError:
        is_one = False
    if not is_one:
        raise InvalidRequestError(f"{url!r} is no URL of a store.", "Write it as s3://bucket/folder.")
    return Prefix(url.rstrip("/"))


@functools.cache
def _opened(scheme: str, bucket: str) -> Any:  # noqa: ANN401 - obstore's
    from obstore.store import MemoryStore, from_url

    if scheme == "memory":
        return MemoryStore()
    with _named(f"{scheme}://{bucket}"):
        return from_url(f"{scheme}://{bucket}")


def _etag(meta: Any, url: str) -> str:  # noqa: ANN401 - obstore's
    etag: str | None = meta["e_tag"]
    if not etag:
        raise InvalidFileError(f"the store of {url} gives no ETags.", "Use another store: nothing tells what changed.")
    return etag


class _named:  # noqa: N801 - a context manager, as `contextlib.suppress`
    """Errors of the store, with the URL that they are about."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        import obstore

        if isinstance(error, (obstore.exceptions.BaseError, OSError)):
            reason = shown(str(error).partition("\n")[0].rstrip("."))
            raise InvalidFileError(
                f"cannot reach {shown(self._url)}: {reason}.",
                "Check the bucket, the network and the credentials (AWS_*, GOOGLE_*, AZURE_* in the environment).",
            ) from error
