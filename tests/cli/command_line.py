"""What the tests of the commands share: refusals, terminals, and commands that take little time."""

import contextlib
import os
import pty
import re
import subprocess

from conftest import COMMAND, Outcome

GRAPH = "export/unet.fp32.onnx"
BUILD = "build --model unet --engine trt-rtx:fp32 --compute-capability 8.9"
HEADER = r".*: [0-9]+ images, [0-9]+ with masks: .*\n  sizes: .*\n  classes: .*\n"  # of the check of labels
SMALL = ("--option", "multiplier=0.0625", "--size", "32x32")


def without_header(said: str) -> str:
    """What a command says on stderr, without what --data holds."""
    return re.sub(rf"^{HEADER}", "", said)


def assert_refused(outcome: Outcome, code: int, what: str) -> None:
    """Two lines on stderr, the second with something to do; nothing on stdout. What --data holds is said before."""
    assert (outcome.code, outcome.out) == (code, ""), outcome.err
    lines = without_header(outcome.err).split("\n")
    assert len(lines) == 3, outcome.err
    assert lines[0].startswith("Error: ")
    assert what in lines[0]
    assert len(lines[1]) > 10
    assert lines[2] == ""


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """What a command writes to a terminal, stdout and stderr together."""
    ours, theirs = pty.openpty()
    settings = {key: value for key, value in os.environ.items() if key not in {"NO_COLOR", "FORCE_COLOR"}}
    with subprocess.Popen(
        [COMMAND, *arguments], stdout=theirs, stderr=theirs, env=settings | {"TERM": "xterm-256color"} | environment
    ) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # a terminal that nobody writes to any more
            while part := os.read(ours, 65536):
                shown += part
    os.close(ours)
    assert process.returncode == 0
    return shown.decode()
