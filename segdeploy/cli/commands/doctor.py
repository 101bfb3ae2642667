"""What is installed, usable, clashing; what to do."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from segdeploy.cli import exit_codes, options, rendering

if TYPE_CHECKING:
    from segdeploy.diagnosis import Diagnosis

ORDER = 130


@click.command(short_help=__doc__)
@options.as_json
def doctor(*, as_json: bool) -> None:
    """What is installed, what is usable, what clashes, and what to do about it; exit 3 on a clash."""
    from segdeploy import api

    found = api.doctor()
    rendering.show(found, as_json=as_json, lines=_lines(found))
    if found.clash:
        sys.exit(exit_codes.ENVIRONMENT)


def _lines(found: "Diagnosis") -> Iterator[str]:
    from segdeploy import typed_json

    machine = typed_json.to_builtins(found.machine)
    yield from (f"{fact}: {rendering.short(value)}" for fact, value in machine.items())
    for check in found.checks:
        yield f"{'ok     ' if check.usable else 'missing'} {check.name}: {check.finding}"
        if check.remedy:
            yield f"        {check.remedy}"
    yield "An engine named by its precision alone runs in the first that is usable; on the CPU, in the faster:"
    for each in found.order:
        yield f"  {each.runtime} on {each.device}: {each.reason or 'usable'}"


COMMAND = doctor
