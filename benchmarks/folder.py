"""Measure `infer` on folders: of many files, of photographs, with each decoding; writes folder.json and folder.md.

    python benchmarks/folder.py many [--images 100000] [--bad 20000] [--work DIR]
    python benchmarks/folder.py rate --photos DIR [--rounds 5] [--work DIR]
    python benchmarks/folder.py scaled --camvid DIR [--work DIR]
    python benchmarks/folder.py mutated --seeds DIR [--images 5000] [--work DIR]

`many`: so many small images, a part of them damaged, segmented by an engine without a network with all else real; then
once more, when there is nothing to do; the reports at the end are not written. A folder of a tenth of the size stands
beside it, for memory; and what the journal takes of the CPU time.
`rate`: images a second of `infer`, start-up apart, beside what the CPU time of its
steps, each measured alone, allows on these cores, and beside a plain loop with Pillow; exact and scaled decoding, in
one interleaved run. `scaled`: what scaled decoding changes in masks, on large JPEGs made of `examples/nuclei` and of
CamVid's validation images. `mutated`: copies of the images in a folder, with bytes changed, taken out, put in or
cut off: each must be done or have its reason. Each part replaces its own table.
"""

import argparse
import dataclasses
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import segdeploy
from segdeploy import cores, fitting, images, metrics, workspace
from segdeploy.data.dataset import Picture
from segdeploy.engines import Engine, RunOptions
from segdeploy.engines._null import NullEngine
from segdeploy.inference import run, sources
from segdeploy.inference.options import FolderOptions
from segdeploy.inference.source_list import SourceList
from segdeploy.inference.work import Task
from segdeploy.proof import accuracy
from segdeploy.timing import machine

HERE = Path(__file__).parent
TENTH = 10
NETWORKS = ("segnet", "unet", "pspnet", "deeplabv3")
FOLDERS = 100  # that the many images lie in
LARGE = 8  # times the size of an image that becomes a large JPEG
MOST_ENLARGED = 32
EXPORTED = ("ort:fp32", "ort:int8")

CHILD = """
import json, sys, time
sys.path.insert(0, sys.argv[3])
import folder
print(json.dumps(folder.segmented(sys.argv[1], sys.argv[2])))
"""


# Many images


def many(count: int, bad: int, work: Path) -> dict[str, Any]:
    """Rows of the whole folder and of a tenth of it: each run by a process of its own, then once more."""
    rows = []
    for total, damaged in ((count // TENTH, 0), (count, 0), (count, bad)):
        photos = _small_images(work / f"photos-{total}-{damaged}", total, damaged)
        shutil.rmtree(out := work / "masks", ignore_errors=True)
        first, again = (_in_a_process(photos, out) for _ in range(2))
        rows.append({"images": total, "damaged": damaged, "first": first, "again": again})
    return {"rows": rows}


def _small_images(folder: Path, count: int, bad: int) -> Path:
    """Hard links to a few real files, in a hundred folders; every so many of them is cut short."""
    if folder.is_dir():
        return folder
    seeds = workspace.packaged_images()
    half = folder / "half.dat"
    folder.mkdir(parents=True)
    half.write_bytes(seeds[0].read_bytes()[:2000])
    places = [folder / f"{index:03}" for index in range(FOLDERS)]
    for place in places:
        place.mkdir()
        for seed in [*seeds, half]:  # a file system has a largest number of links
            shutil.copy(seed, place / f".{seed.name}")
    for index in range(count):
        place = places[index % FOLDERS]
        is_bad = bad and index % (count // bad) == 0
        seed = half if is_bad else seeds[index // FOLDERS % len(seeds)]
        (place / f"{index:06}.png").hardlink_to(place / f".{seed.name}")
    half.unlink()
    return folder


def _in_a_process(photos: Path, out: Path) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", CHILD, photos, out, HERE], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def segmented(photos: str, out: str) -> dict[str, float]:
    """Segment a folder with the engine that draws at once; seconds, peak memory, and what the journal took."""
    from segdeploy.inference.journal import Journal

    spent = _Spent()
    for name in ("add", "get", "_read"):
        setattr(Journal, name, spent.timed(getattr(Journal, name)))
    started = time.monotonic()
    found, _ = sources.find([photos], leave_out=Path(out))
    spec = workspace.weights_for("unet").checkpoint.spec
    with NullEngine(spec) as engine:
        summary = run.run(engine, Task(sources=found, out=Path(out), made_with="null"), done=lambda: None)
    return {
        "seconds": time.monotonic() - started,
        "cpu_s": time.process_time(),
        "journal_cpu_s": spent.seconds,
        "peak_mb": _peak_mb(),
        "done": summary.done,
        "unchanged": summary.unchanged,
        "failed": len(summary.failed) + len(summary.failed_before),
    }


class _Spent:
    """CPU seconds inside some functions, of all threads together."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - whatever it takes and gives
            before = time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += time.thread_time() - before

        return timed


def _peak_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


# Images a second


def rate(photos: Path, rounds: int, work: Path) -> dict[str, Any]:
    """Images a second of `infer` and of a plain loop, and what the CPU time of the steps alone allows."""
    rows = []
    for name, folder in (("nuclei", HERE.parent / "examples/nuclei/images"), ("photos", photos)):
        found, _ = sources.find([str(folder)], leave_out=work / "masks")
        for network in NETWORKS:
            for engine in EXPORTED:
                alone = segdeploy.open(network, engine=engine, options=RunOptions(threads=1, hint="throughput"))
                together = segdeploy.open(network, engine=engine)
                with alone, together:
                    contest = _Contest(alone, together, found, work)
                    rows.append({"folder": name, "network": network, "engine": engine, **contest.measured(rounds)})
    return {"rounds": rounds, "rows": rows}


@dataclasses.dataclass(frozen=True, slots=True)
class _Contest:
    """One network on one folder: `alone` computes on one thread, as `infer` opens it, `together` on all cores."""

    alone: Engine
    together: Engine
    found: SourceList
    work: Path

    def measured(self, rounds: int) -> dict[str, float]:
        """Medians over rounds in random order, images a second; `bound` from the CPU time of the steps alone."""
        ways: dict[str, Callable[[], float]] = {
            "plain loop": self._plain,
            "bound exact": lambda: self._bound("exact"),
            "exact": lambda: self._infer("exact"),
            "bound scaled": lambda: self._bound("scaled"),
            "scaled": lambda: self._infer("scaled"),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        order = random.Random(0)  # noqa: S311
        for _ in range(rounds):
            for name in order.sample(list(ways), len(ways)):
                rates[name].append(ways[name]())
        medians = {name: float(np.median(values)) for name, values in rates.items()}
        for kind in ("exact", "scaled"):
            shares = [done / bound for done, bound in zip(rates[kind], rates[f"bound {kind}"], strict=True)]
            medians[f"{kind} share of bound"] = float(np.median(shares))
        return medians

    def _infer(self, decode: Any) -> float:  # noqa: ANN401 - exact or scaled
        how = FolderOptions(again=True, decode=decode)
        task = Task(sources=self.found, out=self.work / "masks", made_with="rate", options=how)
        summary = run.run(self.alone, task, done=lambda: None)
        return summary.done / summary.seconds

    def _plain(self) -> float:
        """What anybody would write: Pillow, one image after the other, the engine on all cores."""
        spec, out = self.together.spec, self.work / "plain.png"
        palette = np.array(spec.colours, np.uint8).tobytes()
        started = time.perf_counter()
        for source in self.found:
            with Image.open(source.path) as opened:
                photo = opened.convert("RGB")
            small = photo.resize(fitting.network_size(spec)[::-1], Image.Resampling.BILINEAR)
            class_map = self.together.classify(fitting.with_margin(np.asarray(small), spec.margin)[None])[0]
            mask = Image.fromarray(class_map).resize(photo.size, Image.Resampling.NEAREST)
            mask.putpalette(palette)
            mask.save(out)
        return len(self.found) / (time.perf_counter() - started)

    def _bound(self, decode: fitting.Decode) -> float:
        """Images a second if every core did nothing but these steps: each is timed by itself, on one thread."""
        spec = self.alone.spec
        least = fitting.least_decoded(spec, decode)
        spent = 0.0
        for source in self.found:
            steps = _Steps()
            photo = steps.timed(lambda: images.opened_photograph(source.path, least=least))  # noqa: B023 - called at once
            image = steps.timed(lambda: fitting.prepared(photo, spec))  # noqa: B023
            class_map = steps.timed(lambda: self.alone.classify(image[None])[0])  # noqa: B023
            large = steps.timed(lambda: images.to_photo_size(class_map, height=photo.height, width=photo.width))  # noqa: B023
            steps.timed(lambda: images.mask_png(large, spec.colours))  # noqa: B023
            spent += steps.seconds
        return cores.usable() * len(self.found) / spent


class _Steps:
    """CPU seconds of this process, of what was timed."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, step: Callable[[], Any]) -> Any:  # noqa: ANN401 - what the step gives
        before = time.process_time()
        given = step()
        self.seconds += time.process_time() - before
        return given


# Scaled decoding


def scaled(camvid: Path, work: Path) -> dict[str, Any]:
    """Of large JPEGs: pixels that both decodings give the same class, and mIoU of both where the classes are known."""
    rows = []
    for name, data in (("nuclei", HERE.parent / "examples/nuclei"), ("camvid", camvid)):
        pictures = [picture for picture in workspace.pictures_of(data)[:MOST_ENLARGED] if picture.mask is not None]
        large = [_enlarged(picture.image, work / f"{name}-{picture.image.stem}.jpg") for picture in pictures]
        for network in NETWORKS:
            with segdeploy.open(network, engine="ort:fp32") as engine:
                rows.append({"images": name, "network": network, **_scaled_row(engine, pictures, large, name)})
    return {"rows": rows}


def _enlarged(path: Path, to: Path) -> Path:
    if not to.exists():
        with Image.open(path) as image:
            size = image.width * LARGE, image.height * LARGE
            image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(to, quality=92)
    return to


def _scaled_row(engine: Engine, pictures: Sequence[Picture], large: Sequence[Path], name: str) -> dict[str, Any]:
    spec = engine.spec
    counts = {decode: np.zeros((len(spec.classes),) * 2, np.int64) for decode in ("exact", "scaled")}
    same = []
    for picture, path in zip(pictures, large, strict=True):
        masks = {}
        for decode, least in (
            ("exact", None),
            ("scaled", fitting.least_decoded(spec, "scaled")),
        ):
            photo = images.opened_photograph(path, least=least)
            class_map = engine.classify(fitting.prepared(photo, spec)[None])[0]
            masks[decode] = images.to_photo_size(class_map, height=photo.height, width=photo.width)
            if name == "nuclei":
                truth = picture.required_truth(classes=len(spec.classes), ignore_index=spec.ignore_index)
                counts[decode] += accuracy.against(truth, masks[decode], spec)
        same.append(float((masks["exact"] == masks["scaled"]).mean()))
    miou = {f"mIoU {decode}": metrics.miou(found) if name == "nuclei" else None for decode, found in counts.items()}
    return {"count": len(same), "agreement": float(np.mean(same)), "worst image": min(same), **miou}


# Damaged files


def mutated(seeds: Path, count: int, work: Path) -> dict[str, Any]:
    """What becomes of damaged files, the longest that one took, and the memory of it all."""
    shutil.rmtree(photos := work / "mutated", ignore_errors=True)
    photos.mkdir()
    files = [path for path in sorted(seeds.iterdir()) if path.suffix.lower() in images.EXTENSIONS]
    chance = random.Random(0)  # noqa: S311
    for index in range(count):
        path = files[index % len(files)]
        (photos / f"{index:05}{path.suffix}").write_bytes(_mutated(path.read_bytes(), chance))
    shutil.rmtree(out := work / "masks", ignore_errors=True)
    ran = _in_a_process(photos, out)
    lines = map(json.loads, (out / ".segdeploy/journal.jsonl").read_text().splitlines())
    longest = max(line["seconds"] for line in lines)
    if ran["done"] + ran["failed"] != count:
        raise RuntimeError(f"{count} files, but {ran['done']} done and {ran['failed']} failed")
    return {"seeds": len(files), "images": count, "longest_s": longest, **ran}


def _mutated(data: bytes, chance: random.Random) -> bytes:
    """One of the ways in which files break; where they break most, in the header, more often."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        if not found:
            break
        place = chance.randrange(min(len(found), chance.choice((64, 1024, len(found)))))
        kind = chance.choice(("flip", "flip", "take", "put", "zero", "cut"))
        if kind == "flip":
            found[place] ^= 1 << chance.randrange(8)
        elif kind == "take":
            del found[place : place + chance.choice((1, 4, 100))]
        elif kind == "put":
            found[place:place] = chance.randbytes(chance.choice((1, 4, 100)))
        elif kind == "zero":
            found[place : place + 64] = bytes(len(found[place : place + 64]))
        else:
            del found[max(place, 1) :]
    return bytes(found)


# The table


def markdown(results: dict[str, Any]) -> str:
    """Every part that was measured, each with the machine it was measured on."""
    lines: list[str] = []
    for part, write in (
        ("many", _many_lines),
        ("rate", _rate_lines),
        ("scaled", _scaled_lines),
        ("mutated", _mutated_lines),
    ):
        if part in results:
            lines += [*write(results[part]), ""]
    return "\n".join(lines)


def _caption(part: str, found: dict[str, Any]) -> str:
    return f"`python benchmarks/folder.py {part}` on {found['machine']}."


def _many_lines(found: dict[str, Any]) -> Iterator[str]:
    yield from (_caption("many", found), "")
    yield "| images | damaged | run | seconds | CPU s | journal, of that | peak MB | done | unchanged | failed |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row in found["rows"]:
        for name in ("first", "again"):
            ran = row[name]
            yield (
                f"| {row['images']:,} | {row['damaged']:,} | {name} | {ran['seconds']:.1f} | {ran['cpu_s']:.1f} | "
                f"{100 * ran['journal_cpu_s'] / ran['cpu_s']:.1f} % | {ran['peak_mb']:.0f} | {ran['done']:,} | "
                f"{ran['unchanged']:,} | {ran['failed']:,} |"
            )


def _rate_lines(found: dict[str, Any]) -> Iterator[str]:
    yield from (f"{_caption('rate', found)} Images a second, medians of {found['rounds']} rounds in random order.", "")
    yield "| folder | network | engine | plain loop | exact | of the bound | scaled | of the bound |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in found["rows"]:
        yield (
            f"| {row['folder']} | {row['network']} | {row['engine']} | {row['plain loop']:.1f} | {row['exact']:.1f} | "
            f"{row['exact share of bound']:.2f} | {row['scaled']:.1f} | {row['scaled share of bound']:.2f} |"
        )


def _scaled_lines(found: dict[str, Any]) -> Iterator[str]:
    yield from (f"{_caption('scaled', found)} Images enlarged {LARGE} times and saved as JPEG of quality 92.", "")
    yield "| images | network | pixels of the same class | worst image | mIoU exact | mIoU scaled |"
    yield "|---|---|---|---|---|---|"
    for row in found["rows"]:
        exact, scaled_ = ("-" if row[key] is None else f"{row[key]:.4f}" for key in ("mIoU exact", "mIoU scaled"))
        yield (
            f"| {row['count']} of {row['images']} | {row['network']} | {100 * row['agreement']:.3f} % | "
            f"{100 * row['worst image']:.3f} % | {exact} | {scaled_} |"
        )


def _mutated_lines(found: dict[str, Any]) -> Iterator[str]:
    yield from (_caption("mutated", found), "")
    yield (
        f"{found['images']:,} damaged copies of {found['seeds']} files: {found['done']:,} were read, "
        f"{found['failed']:,} have their reason, none is missing. The longest took {found['longest_s']:.1f} s of CPU "
        f"time; peak memory {found['peak_mb']:.0f} MB."
    )


def main() -> None:
    options = _options()
    file = HERE / "folder.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        work = options.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        measured = {
            "many": lambda: many(options.images, options.bad, work),
            "rate": lambda: rate(options.photos, options.rounds, work),
            "scaled": lambda: scaled(options.camvid, work),
            "mutated": lambda: mutated(options.seeds, options.images, work),
        }[options.part]()
    measured["machine"] = machine.describe().named
    results[options.part] = measured
    file.write_text(json.dumps(results, indent=1) + "\n")
    file.with_suffix(".md").write_text(markdown(results))
    sys.stdout.write(markdown({options.part: measured}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    each = {name: parts.add_parser(name) for name in ("many", "rate", "scaled", "mutated")}
    each["many"].add_argument("--images", type=int, default=100_000)
    each["many"].add_argument("--bad", type=int, default=20_000)
    each["rate"].add_argument("--photos", type=Path, required=True)
    each["rate"].add_argument("--rounds", type=int, default=5)
    each["scaled"].add_argument("--camvid", type=Path, required=True)
    each["mutated"].add_argument("--seeds", type=Path, required=True)
    each["mutated"].add_argument("--images", type=int, default=5000)
    for parser_ in each.values():
        parser_.add_argument("--work", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
