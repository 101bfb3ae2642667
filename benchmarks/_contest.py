"""Competitors that are processes of their own and take turns."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

Answer = TypeVar("Answer")


@contextlib.contextmanager
def competitor(*command: str | Path) -> Iterator[Callable[[str], list[float]]]:
    """A process that answers every line with numbers; it is warm when the block begins."""
    with subprocess.Popen(
        [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        asked, answers = process.stdin, process.stdout
        if asked is None or answers is None:
            raise OSError(command)

        def ask(line: str = "0") -> list[float]:
            print(line, file=asked, flush=True)
            return [float(number) for number in answers.readline().split()]

        ask()
        try:
            yield ask
        finally:
            asked.close()


def answer_of(*command: str | Path) -> float:
    done = subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True)
    return float(done.stdout)


def in_turns(rounds: int, competitors: Mapping[str, Callable[[], Answer]]) -> dict[str, list[Answer]]:
    """What each says in each round, in another random order every time: none is always behind the same other."""
    found: dict[str, list[Answer]] = {name: [] for name in competitors}
    names, order = list(competitors), np.random.default_rng(0)
    for _ in range(rounds):
        for index in order.permutation(len(names)):
            found[names[index]].append(competitors[names[index]]())
    return found
