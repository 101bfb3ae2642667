"""The page of `segdeploy report`: what it says, that it asks nothing of any network, and what it refuses."""

import html
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import result_files as made
from conftest import Run
from hypothesis import given
from hypothesis import strategies as st
from result_files import Document

from segdeploy.errors import InvalidFileError, InvalidRequestError, MissingRuntimeError
from segdeploy.reporting import figures, page, sections, svg, verdict
from segdeploy.timing import results

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
LOADING = {"src", "srcset", "href", "data", "action", "formaction", "poster", "xlink:href", "background"}


class Parsed(HTMLParser):
    """The elements of a page, what they would load, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self._open: dict[str, str | None] | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for key, value in attrs if key in LOADING]
        assert not [key for key, _ in attrs if key.startswith("on") or key == "style"], "the policy forbids these"
        if tag in {"script", "style"}:
            self._open = {"tag": tag, **dict(attrs)}

    def handle_endtag(self, tag: str) -> None:
        if tag in {"script", "style"}:
            self._open = None

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self.scripts.append((self._open, data))
        else:
            self.text += data


def written(folder: Path, *documents: Document, **options: str) -> str:
    page.write(made.saved(folder, *documents), folder / "page.html", **options)
    return (folder / "page.html").read_text(encoding="utf-8")


def told(page: str) -> str:
    return " ".join(Parsed(page).text.split())


def embedded(page: str) -> Any:  # noqa: ANN401 - a JSON document
    return next(json.loads(text) for kind, text in Parsed(page).scripts if kind.get("type") == "application/json")


def verdict_of(of: Document, folder: Path) -> verdict.Verdict:
    (path,) = made.saved(folder, of)
    found = verdict.judge(sections.groups([verdict.NamedResult(path.name, results.read(path))])[0])
    assert found is not None
    return found


def without(of: Document, *engines: str) -> Document:
    """As if these engines had not been timed."""
    gone = {each["id"] for each in of["subjects"] if each["engine"] in engines}
    left = [each for each in of["subjects"] if each["id"] not in gone]
    return {**of, "subjects": left, "rows": [row for row in of["rows"] if row["subject"] not in gone]}


def with_medians(of: Document, medians: dict[str, tuple[float, float, float]]) -> Document:
    """Low end, median and high end of every row of some engines."""
    ids = {f"unet {engine} cpu": figures for engine, figures in medians.items()}
    rows = [
        row
        if row["subject"] not in ids
        else {
            **row,
            "latency_ms": {**row["latency_ms"], "median": ids[row["subject"]][1]},
            "median_interval": made.interval(ids[row["subject"]][0], ids[row["subject"]][2]),
        }
        for row in of["rows"]
    ]
    return {**of, "rows": rows}


# The verdict


def test_the_fastest_engine_with_proven_masks_is_the_one_to_ship(tmp_path: Path) -> None:
    """OpenVINO's int8 is faster and its certificate failed; both are said, with numbers and the interval."""
    verdict = verdict_of(made.document("unet"), tmp_path)
    assert verdict.pick is not None
    assert verdict.pick.subject.label == "ort:int8"
    speed, accuracy = verdict.sentences
    assert "9.40 ms a photograph (95%: 9.31 to 9.49)" in speed
    assert "3.2 times as fast as torch:fp32 (30.0 ms) and 2.3 times as fast as ort:fp32 (21.5 ms)" in speed
    assert "99.87% of the pixels are PyTorch's; mIoU 0.8887 (PyTorch: 0.8900)" in accuracy
    assert any(note.startswith("ov:int8 (7.70 ms) is faster, but its certificate fails") for note in verdict.notes)
    assert any("plain onnxruntime int8 (12.1 ms)" in note and "0.78 of its time" in note for note in verdict.notes)


def test_an_engine_within_the_interval_is_as_good_a_choice(tmp_path: Path) -> None:
    """A verdict on 0.1 ms that the measurement cannot tell would be made up."""
    close = with_medians(made.document("unet"), {"ort:int8": (9.0, 9.4, 9.9), "ort:fp32": (9.3, 9.5, 9.8)})
    verdict = verdict_of(close, tmp_path)
    assert "as fast as ort:fp32 (9.50 ms) within the intervals" in verdict.sentences[0]
    assert "Within its interval, so as good a choice for speed: ort:fp32 (9.50 ms)." in verdict.notes


def test_without_intervals_a_verdict_says_that_it_goes_by_the_medians(tmp_path: Path) -> None:
    """Five runs of each, or a result of 0.1."""
    document = made.document("unet")
    document["rows"] = [{**row, "median_interval": None} for row in document["rows"]]
    speed = verdict_of(document, tmp_path).sentences[0]
    assert "9.40 ms a photograph (no interval was measured)" in speed
    assert "3.2 times as fast as torch:fp32 (30.0 ms), by the medians alone" in speed


def test_the_page_names_the_instruction_set_and_what_an_interval_assumes(tmp_path: Path) -> None:
    """Processors of one name differ in what int8 gains on them."""
    document = made.document("unet")
    document["rows"][0]["median_interval"]["assumes_independent"] = True
    page = told(written(tmp_path, document))
    assert "AMD EPYC (avx2), 2 cores" in page
    assert "23.8 to 24.2*" in page
    assert "An asterisk (*): fewer than 50 calls" in page


def test_a_network_whose_engines_all_failed_has_none_to_ship(tmp_path: Path) -> None:
    failed = without(made.document("unet"), "torch:fp32", "ort:fp32", "ort:int8", "plain onnxruntime")
    verdict = verdict_of(failed, tmp_path)
    assert verdict.pick is None
    assert "No engine keeps the masks" in verdict.sentences[0]
    assert "Ship none of these" in told(written(tmp_path, failed))


def test_random_weights_are_said_and_judge_nothing(tmp_path: Path) -> None:
    untrained = made.document("unet")
    for each in untrained["subjects"]:
        each["random_weights"] = True
    verdict = verdict_of(untrained, tmp_path)
    assert "The weights are random" in verdict.sentences[1]
    page = told(written(tmp_path, untrained))
    assert "Fastest ov:int8" in page
    assert "Ship ov:int8" not in page


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    verdict = verdict_of(made.least(), tmp_path)
    assert verdict.sentences[0] == "12.3 ms an image (no interval was measured), from images in memory to class maps."
    assert verdict.sentences[1] == "Its accuracy was not measured: check the masks before you ship it."


def test_noise_and_disturbance_are_said_beside_the_verdict(tmp_path: Path) -> None:
    busy = made.document("unet")
    busy["rows"] = [{**row, "noisy": row["subject"] == "unet ort:int8 cpu"} for row in busy["rows"]]
    busy["conditions"]["flags"] = ["12 % of the processor time was taken by other guests"]
    assert "Noisy, so their interval stayed wide: ort:int8." in verdict_of(busy, tmp_path).notes
    page = told(written(tmp_path, busy))
    assert "Disturbed machine in 0.json: 12 % of the processor time was taken by other guests" in page


def test_another_tool_is_never_shipped_before_an_engine_of_ours(tmp_path: Path) -> None:
    """It has no certificate; how much faster it is still stands in the notes."""
    beaten = with_medians(made.document("unet"), {"plain onnxruntime": (4.9, 5.0, 5.1)})
    verdict = verdict_of(beaten, tmp_path)
    assert verdict.pick is not None
    assert verdict.pick.subject.label == "ort:int8"
    assert any("ort:int8 takes 1.88 of its time" in note for note in verdict.notes)


def test_networks_are_held_against_each_other_only_where_they_were_scored_alike(tmp_path: Path) -> None:
    alike = written(tmp_path, made.document("unet", "segnet"))
    assert "Of these networks unet in ort:int8 (9.40 ms, mIoU 0.8887) is both the fastest" in told(alike)
    assert "All networks" in alike
    for other in ({"data": "camvid"}, {"images": 71}):
        page = written(tmp_path, made.document("unet"), made.changed(made.document("segnet"), **other))
        assert "All networks" not in page
        assert "Of these networks" not in page


def test_the_same_subject_in_two_files_is_two_engines(tmp_path: Path) -> None:
    page = told(written(tmp_path, made.document("unet"), made.document("unet")))
    assert "unet · 0.json" in page
    assert "unet · 1.json" in page
    assert "10 engines" in page


# The charts


@given(
    st.lists(
        st.tuples(st.integers(1, 6).map(float), st.integers(0, 5).map(lambda step: step / 5)), min_size=1, max_size=25
    )
)
def test_the_front_is_what_no_other_point_beats(points: list[tuple[float, float]]) -> None:
    """On a coarse grid, so that points coincide and tie."""

    def beaten(x: float, y: float) -> bool:
        return any(a <= x and b >= y and (a, b) != (x, y) for a, b in points)

    found = svg.front(points)
    assert sorted(found) == [index for index, point in enumerate(points) if not beaten(*point)]
    assert [points[index] for index in found] == sorted(points[index] for index in found)


@pytest.mark.parametrize("count", [1, 2, 60])
def test_a_chart_takes_any_number_of_points_and_its_labels_keep_apart(count: int) -> None:
    points = [
        svg.Point(1.5**n % 90 + 1, None if n % 7 == 6 else 0.9 + (n * 37 % 50) / 1000, f"ort:int{n}", "t", n, "fp32")
        for n in range(count)
    ]
    drawn = svg.scatter(points, svg.Chart("unet", "mIoU", percent=False))
    labels = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="name[^"]*">([^<]+)<', drawn)
    boxes = [(float(x), float(y), float(x) + len(text) * svg.LETTER, float(y) + svg.LINE) for x, y, text in labels]
    assert boxes
    for index, (left, top, right, bottom) in enumerate(boxes):
        assert all(right <= a or c <= left or bottom <= b or d <= top for a, b, c, d in boxes[:index])
    assert drawn.count("<title>") == count


def test_a_failed_engine_is_marked_and_not_on_the_front() -> None:
    slow, failed = (svg.Point(x, 0.9, name, "t", 0, "int8", failed=x < 2) for x, name in ((3.0, "slow"), (1.0, "bad")))
    drawn = svg.scatter([slow, failed], svg.Chart("unet", "mIoU", percent=False))
    assert "best: slow" in drawn
    assert drawn.count("failed") == 1


@given(st.floats(1e-9, 1e15), st.floats(1e-9, 1e15), st.floats(0, 1))
def test_a_chart_draws_any_numbers_that_a_file_may_hold(fast: float, slow: float, accuracy: float) -> None:
    points = [svg.Point(x, accuracy, "a", "t", 0, "fp32") for x in (fast, slow)]
    drawn = svg.scatter(points, svg.Chart("unet", "agreement", percent=True))
    assert "nan" not in drawn
    assert "inf" not in drawn


# Numbers


@given(st.floats(0, 1))
def test_a_share_rounds_to_all_only_where_it_is_all(share: float) -> None:
    """99.996% is not 100%: a stranger would read that no pixel differs."""
    shown = figures.percent(share)
    assert (shown == "100%") == (share == 1)
    assert (shown == "0%") == (share == 0)
    assert float(shown.rstrip("%")) == pytest.approx(100 * share, abs=0.06)


@pytest.mark.parametrize(
    "value,shown", [(0.01234, "0.0123"), (1.2345, "1.23"), (12.345, "12.3"), (123.45, "123"), (1234.5, "1,234")]
)
def test_a_time_has_three_digits(value: float, shown: str) -> None:
    assert figures.ms(value) == shown


def test_a_share_shows_what_lacks() -> None:
    assert [figures.percent(share) for share in (0.999964, 0.99, 0.000123)] == ["99.9964%", "99.0%", "0.012%"]


# The page as a file


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    """Every address in it leads into the page itself; and no address of any network stands in it at all."""
    page = written(tmp_path, made.document("unet", "segnet"))
    assert {target[:1] for target in Parsed(page).loads if target != "data:,"} == {"#"}
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", page.partition('<script type="application/json"')[0])
    assert "default-src 'none'" in html.unescape(page)


def test_text_from_a_file_stays_text(tmp_path: Path) -> None:
    """Class names, layers, reasons: whoever wrote the file must not write the page."""
    evil = made.document("unet")
    for each in evil["subjects"]:
        each["classes"][1] = EVIL
        each["iou_by_class"][EVIL] = 0.5
        each["in_float"] = {EVIL: EVIL}
        each["sha256"] = each["path"] = each["miou_reason"] = EVIL
    names = ("made_at", "command", "version", "commit", "data")
    machine = {**evil["machine"], "processor": EVIL, "packages": {EVIL: EVIL}}
    conditions = {**evil["conditions"], "flags": [EVIL]}
    evil = made.changed(evil, **dict.fromkeys(names, EVIL), machine=machine, conditions=conditions)
    evil["pictures"][0]["name"] = EVIL
    evil["failures"] = [{"what": EVIL, "remedy": EVIL}]
    evil = json.loads(json.dumps(evil).replace('"unet', json.dumps(EVIL + "unet")[:-1]))
    page, plain = written(tmp_path, evil, title=EVIL), written(tmp_path, made.document("unet"))
    assert Parsed(page).tags.count("script") == Parsed(plain).tags.count("script") == 2
    assert Parsed(page).tags.count("img") == 0
    assert embedded(page)["files"][0]["content"]["command"] == EVIL
    assert not set("<>&") & set(page.partition('id="data">')[2].partition("</script>")[0])


@pytest.mark.parametrize("text", ["\ud800", "\0", "\u2028<!--", "]]>", "{{ 7 * 7 }}", "javascript:alert(1)"])
def test_no_character_breaks_the_page(tmp_path: Path, text: str) -> None:
    """A lone surrogate is JSON and not UTF-8; a template in a file is no template."""
    page = written(tmp_path, made.changed(made.document("unet"), command=text))
    assert embedded(page)["files"][0]["content"]["command"] == text
    assert "49" not in Parsed(page).text.partition("Reproduced by")[2].partition("Copy")[0]


def test_the_same_files_give_the_same_page(tmp_path: Path) -> None:
    assert written(tmp_path, made.document("unet")) == written(tmp_path, made.document("unet"))


def test_the_data_in_the_page_are_the_file(tmp_path: Path) -> None:
    """Each image stands in it once, named by its number; put back, they give the document."""
    document = made.document("unet")
    data = embedded(written(tmp_path, document))
    images, content = data["images"], data["files"][0]["content"]
    assert len(images) == len(set(images))
    for picture in content["pictures"]:
        picture["photo"], picture["truth"] = images[picture["photo"]], images[picture["truth"]]
        picture["masks"] = {key: images[number] for key, number in picture["masks"].items()}
    assert content == document


def test_pictures_that_do_not_fit_are_left_out_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst come first in a file, and stay."""
    document = made.document("unet", pictures=12)
    whole = len(written(tmp_path, document))
    monkeypatch.setattr(page, "MOST_BYTES", whole - 5000)
    html = written(tmp_path, document)
    kept = [picture["name"] for picture in embedded(html)["files"][0]["content"]["pictures"]]
    assert 0 < len(kept) < 12
    assert kept == [f"{index}.png" for index in range(len(kept))]
    assert len(html.encode()) <= whole - 5000
    assert f"{12 - len(kept)} pictures were left out" in told(html)


def test_sixty_engines_fit_below_the_limit(tmp_path: Path) -> None:
    html = written(tmp_path, made.document(*(f"net{index}" for index in range(12)), pictures=30))
    assert len(html.encode()) < page.MOST_BYTES
    assert "60 engines" in told(html)


def test_the_least_a_file_can_hold_makes_a_page(tmp_path: Path) -> None:
    page = told(written(tmp_path, made.least()))
    assert "1 network, 1 engine" in page
    assert "Worst images" not in page


@pytest.mark.parametrize("section", ["search", "profile", "certificate", "asked", "iou_by_class"])
def test_a_subject_without_an_optional_part_is_shown(tmp_path: Path, section: str) -> None:
    document = made.document("unet")
    for each in document["subjects"]:
        each[section] = None
    assert "5 engines" in told(written(tmp_path, document))


def test_every_part_of_a_whole_file_is_on_the_page(tmp_path: Path) -> None:
    document = made.document("unet")
    document["comparison"] = {
        "with": "old.json",
        "max_regression": 0.05,
        "rows": [
            {
                "subject": "unet ort:int8 cpu",
                "level": "host",
                "batch": 1,
                "ratio": 1.12,
                "interval": made.interval(1.1, 1.14),
                "regression": True,
                "comparable": True,
                "reason": None,
            }
        ],
    }
    document["skipped"] = [{"engine": "trt:fp16", "reason": "there is no GPU"}]
    page = told(written(tmp_path, document))
    for words in (
        "IoU against the truth",
        "it costs 0.31 points",
        "what the budget bought",
        "the other 10",
        "Against old.json",
        "✗ slower",
        "trt:fp16 (there is no GPU)",
        "segdeploy bench --all --data nuclei --save unet.json",
        "5a5a5a",
        "Worst images",
        "numpy2.4.6",
    ):
        assert words in page, words


# The command


def test_the_command_writes_the_page(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made.saved(tmp_path, made.document("unet"))
    done = run("report", "0.json")
    assert (done.code, done.err) == (0, "")
    assert re.fullmatch(r"report\.html  0\.\d\d MB  5 engines\n", done.out)
    answer = run("report", "0.json", "--out", "deep/page.html", "--title", "Ours", "--json").json()
    assert answer["schema"] == 1
    assert answer["path"] == "deep/page.html"
    assert answer["subjects"][0] == {"document": "0.json", "id": "unet torch:fp32 cpu"}
    assert "<title>Ours</title>" in (tmp_path / "deep" / "page.html").read_text(encoding="utf-8")


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    "content,what",
    [
        ("{", "is not JSON"),
        ("[]", "is no result of segdeploy bench (its kind: unnamed)"),
        ('{"kind": "parity", "schema": 2}', "its kind: parity"),
        ('{"kind": "bench", "schema": 1, "rows": [1]}', "is of schema 1; this version reads 2 and 4"),
        ('{"kind": "bench", "schema": [3], "rows": [1]}', "is of schema [3]; this version reads 2 and 4"),
        ('{"kind": "bench", "schema": 2, "subjects": [], "rows": []}', "has no rows"),
        (nested(100_000), "is not JSON"),
        ("\xff", "is not JSON"),
    ],
)
def test_what_is_no_result_is_refused_in_two_lines(run: Run, tmp_path: Path, content: str, what: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content.encode("latin-1"))
    done = run("report", path, "--out", tmp_path / "page.html")
    assert (done.code, done.out) == (3, "")
    assert what in done.err.split("\n")[0]
    assert done.err.count("\n") == 2
    assert not (tmp_path / "page.html").exists()


def test_a_missing_file_is_a_wrong_request(run: Run, tmp_path: Path) -> None:
    done = run("report", tmp_path / "none.json", "--out", tmp_path / "page.html")
    assert done.code == 2
    assert "there is no file" in done.err
    assert run("report").code == 2


def test_a_page_that_cannot_be_written_leaves_nothing(run: Run, tmp_path: Path) -> None:
    (path,) = made.saved(tmp_path, made.document("unet"))
    (tmp_path / "file").write_text("")
    done = run("report", path, "--out", tmp_path / "file" / "page.html")
    assert done.code == 3
    assert "cannot write" in done.err
    assert sorted(each.name for each in tmp_path.iterdir()) == ["0.json", "file"]


def test_a_result_is_not_overwritten_by_its_page(tmp_path: Path) -> None:
    (path,) = made.saved(tmp_path, made.document("unet"))
    with pytest.raises(InvalidRequestError, match="is one of the result files"):
        page.write([path], path)
    assert json.loads(path.read_text())["kind"] == "bench"


@pytest.mark.parametrize(
    "place,value,what",
    [
        (("rows", 0, "latency_ms", "median"), 0, "rows[0].latency_ms.median: expected float >= 1e-09"),
        (("rows", 0, "latency_ms", "median"), "fast", "rows[0].latency_ms.median: expected float, got str"),
        (("rows", 0, "latency_ms", "median"), 10**400, "rows[0].latency_ms.median: number out of range"),
        (("rows", 0, "latency_ms", "median"), float("nan"), "NaN is no number"),
        (("rows", 0, "median_interval"), [1, 2], "rows[0].median_interval: expected object | null, got array"),
        (("rows", 0, "subject"), "nobody", "a row is of 'nobody', which is no subject"),
        (("subjects", 1, "id"), "unet torch:fp32 cpu", "occurs twice"),
        (("subjects", 0, "miou"), 1.5, "subjects[0].miou: expected float <= 1.0"),
        (("subjects", 0, "classes"), {"a": 1}, "subjects[0].classes: expected array, got object"),
        (("pictures", 0, "photo"), "aGVsbG8=", "pictures[0].photo: expected str matching regex"),
        (("pictures", 0, "photo"), "/9j/AA'><script>", "pictures[0].photo: expected str matching regex"),
        (("pictures", 0, "photo"), "/9j/AA\n", "pictures[0].photo: expected str matching regex"),
        (("rows", 0, "batch"), True, "rows[0].batch: expected int, got bool"),
        (("unknown",), {"kept": [1, None]}, "the field unknown is unknown"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, place: tuple[str | int, ...], value: object, what: str) -> None:
    document: Any = made.document("unet")
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(InvalidFileError) as refused:
        page.write(made.saved(tmp_path, document), tmp_path / "page.html")
    assert what in refused.value.what


def test_without_jinja2_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingRuntimeError) as refused:
        page.write(made.saved(tmp_path, made.document("unet")), tmp_path / "page.html")
    assert refused.value.remedy == "Install it: pip install 'segdeploy[report]'"


def test_a_network_is_named_with_its_file_where_several_have_it(tmp_path: Path) -> None:
    pages = {
        names: told(written(tmp_path, *map(made.document, names))) for names in (("unet", "segnet"), ("unet", "unet"))
    }
    assert "unet · " not in pages["unet", "segnet"]
    assert "unet · 0.json" in pages["unet", "unet"]
    assert "unet · 1.json" in pages["unet", "unet"]


def test_where_files_come_from_is_said_once_for_those_that_share_it(tmp_path: Path) -> None:
    here, there = made.document("unet"), made.document("unet")
    there["machine"] = {**there["machine"], "processor": "Another"}
    lead = told(written(tmp_path, here, here, there))
    assert re.search(r"0\.json, 1\.json: (?!Another)[^;]+; 2\.json: Another \(", lead), lead[:400]
