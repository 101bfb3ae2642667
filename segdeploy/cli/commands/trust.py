"""Admit a file from elsewhere, by a sha256."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import click

from segdeploy.cli import options, rendering
from segdeploy.errors import InvalidRequestError

ORDER = 40


@dataclasses.dataclass(frozen=True, slots=True)
class TrustReport:
    """The sha256 of each manifest and kit that is admitted, and since when."""

    schema: Literal[1]
    trusted: Mapping[str, str]


@click.command(short_help=__doc__)
@click.argument("sha256", required=False)
@click.option("--revoke", is_flag=True, help="Take it out of the list.")
@options.as_json
def trust(*, sha256: str | None, revoke: bool, as_json: bool) -> None:
    """Admit the manifest or the proof kit with that sha256; without one, list what is admitted.

    What a manifest claims counts from then on, and a plan, which is native code, is opened: admit only what you know
    the origin of. The refusal of a file names the sha256.
    """
    from segdeploy import signature

    if sha256 is None and revoke:
        raise InvalidRequestError("--revoke takes a sha256.", "See the list: segdeploy trust")
    listed = signature.trusted() if sha256 is None else signature.trust(sha256, revoke=revoke)
    lines = [f"{known}  since {since}" for known, since in listed.items()] or ["No file from elsewhere is trusted."]
    rendering.show(TrustReport(1, listed), as_json=as_json, lines=lines)


COMMAND = trust
