"""Measure `ov` with batches in flight against OpenVINO's benchmark_app; writes benchmarks/engines_throughput.*.

    python benchmarks/engines.py throughput [--network NAME] [--precision int8] [--rounds 6] [--work DIR]

The four networks at full size (360x480, 21 classes, untrained), batch 1 and 8, fp32 and int8: images a second of `ov`
with several batches in flight (`submit`, `collect`) and of benchmark_app on the same graph, with the throughput hint.
Both are processes of their own; they take turns in random order, round by round, and ratios are taken within a round.
With --network and --precision, only those are measured anew, and the other rows stay. Graphs are made in DIR.
"""

import argparse
import functools
import itertools
import json
import os
import shlex
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _contest import answer_of, competitor, in_turns
from _graphs import full_size

from segdeploy import artifact, engines, models, typed_json
from segdeploy.engines import RunOptions
from segdeploy.spec import Precision
from segdeploy.timing import intervals, latency, machine
from segdeploy.timing.result_types import Machine

SCHEMA = 2
REFERENCE = "benchmark_app"
HERE = Path(__file__).resolve().parent
BENCHMARK_APP = HERE / "peers" / "openvino_benchmark_app.py"
PRECISIONS = (Precision.FP32, Precision.INT8)
BATCHES = (1, 8)
SHORTEST_S, BATCHES_A_ROUND = 5, 4


def compared(found: Mapping[str, list[float]], reference: str) -> dict[str, Any]:
    return {
        name: {
            "median": float(np.median(kept)),
            "samples": kept,
            **typed_json.to_builtins(latency.ratio(kept, found[reference])),
        }
        for name, kept in found.items()
    }


def throughput(names: Sequence[str], precisions: Sequence[Precision], rounds: int) -> dict[str, Any]:
    rows = []
    for name in names:
        graphs = full_size(name)
        for precision, batch in itertools.product(precisions, BATCHES):
            graph = graphs[precision]
            with competitor(HERE / "engines.py", "keep-busy", graph.path, str(batch)) as ours:
                seconds = max(SHORTEST_S, round(BATCHES_A_ROUND * 2 * batch / ours("2")[0]))
                facts = (graph.path, str(batch), str(graph.spec.height), str(graph.spec.width), str(seconds))
                app = functools.partial(answer_of, BENCHMARK_APP, *facts)
                busy = functools.partial(_first, ours, str(seconds))
                found = in_turns(rounds, {"ov": busy, REFERENCE: app})
            rows.append(_row(name, precision, batch, compared(found, REFERENCE), seconds=seconds))
    return {"unit": "images/s", "better": "more", "reference": REFERENCE, "rounds": rounds, "rows": rows}


def _first(ask: Callable[[str], list[float]], line: str) -> float:
    return ask(line)[0]


def keep_busy(graph: Path, batch: int) -> None:
    """For every number of seconds on stdin: images a second, as many batches in flight as the engine takes."""
    file = artifact.read(graph)
    pictures = np.random.default_rng(0).integers(0, 256, (batch, file.spec.height, file.spec.width, 3), dtype=np.uint8)
    with engines.open_engine(file, runtime="ov", device="cpu", options=RunOptions(hint="throughput")) as engine:
        out = engine.classify(pictures)
        for line in sys.stdin:
            started = time.perf_counter()
            waiting, count = deque([engine.submit(pictures) for _ in range(engine.in_flight)]), engine.in_flight
            streams = max(1, engine.in_flight - 1)
            while time.perf_counter() - started < float(line) or count % streams:  # no stream ends alone
                engine.collect(waiting.popleft(), out)
                waiting.append(engine.submit(pictures))
                count += 1
            while waiting:
                engine.collect(waiting.popleft(), out)
            print(count * batch / (time.perf_counter() - started), flush=True)


def _row(name: str, precision: Precision, batch: int, found: Mapping[str, Any], **facts: Any) -> dict[str, Any]:  # noqa: ANN401
    print(name, precision, batch, {each: round(facts["ratio"], 3) for each, facts in found.items()}, flush=True)
    return {"network": name, "precision": precision, "batch": batch, "competitors": found, **facts}


def _others(path: Path, report: Mapping[str, Any]) -> list[Any]:
    """What was measured before and was not measured now, on the same machine with the same packages."""
    if not path.is_file():
        return []
    before = json.loads(path.read_bytes())
    measured = {_place(row) for row in report["rows"]}
    return [row for row in before["rows"] if before["machine"] == report["machine"] and _place(row) not in measured]


def _place(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row["network"], row["precision"], row["batch"]


def page(report: Mapping[str, Any]) -> str:
    """The table: medians, and ratios to the last column with their 95 % intervals."""
    rows = report["rows"]
    reference = report["reference"]
    ours = [name for name in rows[0]["competitors"] if name != reference]
    head = ["network", "precision", "batch", *ours, reference, *(f"{name} / {reference}" for name in ours)]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for row in rows:
        medians = [f"{row['competitors'][name]['median']:.4g}" for name in (*ours, reference)]
        ratios = []
        for name in ours:
            interval = row["competitors"][name]["interval"]
            sure = f"{interval['low']:.3f} to {interval['high']:.3f}" if interval else "too few rounds"
            ratios.append(f"{row['competitors'][name]['ratio']:.3f} ({sure})")
        lines.append(" | ".join([row["network"], row["precision"], str(row["batch"]), *medians, *ratios]))
    table = "\n".join(f"| {line} |" for line in lines)
    facts = report["machine"]
    named = typed_json.convert(facts, Machine, where="machine", remedy="", partial=True).named
    where = f"{named}, {report['rounds']} rounds"
    told = f"Medians in {report['unit']} ({report['better']} is better); ratios with the 95 % interval that independent"
    told += " rounds give."
    return f"# {report['name']}\n\n`{report['command']}` on {where}.\n\n{told}\n\n{table}\n"


def main() -> None:
    if sys.argv[1] == "keep-busy":
        keep_busy(Path(sys.argv[2]), int(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["throughput"])
    parser.add_argument("--network", choices=models.names(), action="append")
    parser.add_argument("--precision", choices=PRECISIONS, action="append", type=Precision)
    parser.add_argument("--rounds", type=int, default=intervals.FEWEST)
    parser.add_argument("--work", type=Path, default=Path("build/engines"))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    os.chdir(given.work)
    found = throughput(given.network or models.names(), given.precision or PRECISIONS, given.rounds)
    command = shlex.join(["python", "benchmarks/engines.py", given.what])
    report = {"schema": SCHEMA, "name": given.what, "command": command, **found}
    report["machine"] = json.loads(typed_json.to_text(machine.describe()))
    name = f"engines_{given.what}"
    report["rows"] = sorted([*report["rows"], *_others(HERE / f"{name}.json", report)], key=_place)
    artifact.write_atomically(HERE / f"{name}.json", (json.dumps(report, indent=1) + "\n").encode())
    artifact.write_atomically(HERE / f"{name}.md", page(report).encode())


if __name__ == "__main__":
    main()
