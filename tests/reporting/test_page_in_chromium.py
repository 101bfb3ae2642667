"""The page in a real browser: it asks nothing of any network, and everything works from the keyboard.

Skipped where there is no Chromium; `make report-check` fails there.
"""

import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import result_files as made
from conftest import photograph

from segdeploy.reporting import page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP, PHONE = (1240, 900), (390, 844)


def absent(what: str) -> NoReturn:
    """Skip by name; fail where SEGDEPLOY_REQUIRE (`make report-check`) names Chromium."""
    if "chromium" in os.environ.get("SEGDEPLOY_REQUIRE", "").split(","):
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        absent(f"none of {', '.join(NAMES)} is installed")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        absent("playwright is not installed")
    alone = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox refuses root
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=[*alone, *QUIET])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    paths = made.saved(folder, made.document("unet", "segnet", pictures=3), made.document("unet", pictures=1))
    page.write(paths, folder / "page.html")
    return folder / "page.html"


class Opened:
    """A page, and whatever it asked for or complained about."""

    def __init__(self, page: "Page", file: Path) -> None:
        self.page = page
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(file.as_uri())
        page.wait_for_function("document.querySelector('#compare')?.dataset.drawn")

    def told(self, script: str) -> Any:  # noqa: ANN401 - any JSON value
        return self.page.evaluate(script)


def opened(browser: "Browser", file: Path, size: tuple[int, int] = DESKTOP, **settings: Any) -> Opened:  # noqa: ANN401 - of playwright
    viewport: Any = {"width": size[0], "height": size[1]}
    page = browser.new_page(viewport=viewport, reduced_motion="reduce", **settings)
    page.set_default_timeout(20_000)
    return Opened(page, file)


@pytest.fixture
def shown(browser: "Browser", file: Path) -> Iterator[Opened]:
    """The page on a desktop; at the end of every test nothing was asked for and nothing complained about."""
    page = opened(browser, file)
    yield page
    assert [request for request in page.requests if not request.startswith("blob:")] == [file.as_uri()]
    assert page.complaints == []
    page.page.close()


def pixels(shown: Opened, canvas: str) -> str:
    return str(shown.told(f"document.querySelector('{canvas}').toDataURL()"))


def drawn(shown: Opened, *, after: str) -> str:
    """What is compared, once it is no longer what it was."""
    shown.page.wait_for_function("before => document.querySelector('#compare').dataset.drawn !== before", arg=after)
    return state(shown)


def state(shown: Opened) -> str:
    return str(shown.told("document.querySelector('#compare').dataset.drawn"))


def focus(shown: Opened, selector: str) -> "Locator":
    found = shown.page.locator(selector)
    found.focus()
    return found


def test_every_request_is_the_page_itself(shown: Opened, file: Path) -> None:
    """After every control was used once."""
    for select in ("#picture", "#left", "#right"):
        shown.page.locator(select).press("End")
    for radio in shown.page.locator("input[type=radio]").all():
        radio.check()
    shown.page.locator("#theme").click()
    shown.page.locator(".copy").first.click()
    shown.page.wait_for_timeout(200)
    assert shown.requests == [file.as_uri()]


def test_the_policy_stops_what_would_ask(browser: "Browser", file: Path) -> None:
    """Were a file's text ever to become markup, the browser itself would refuse to fetch for it."""
    page = opened(browser, file)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x.png"
        image = "address => new Promise(done => { const i = new Image(); i.onerror = done; i.src = address; })"
        page.page.evaluate(image, address)
        fetched = page.page.evaluate("address => fetch(address).then(() => true, () => false)", address)
        with pytest.raises(BlockingIOError):  # nobody came
            server.accept()
    assert not fetched
    assert sum("Content Security Policy" in complaint for complaint in page.complaints) >= 2
    page.page.close()


def test_the_divide_moves_by_keyboard(shown: Opened) -> None:
    focus(shown, "#split")
    before = shown.told("document.querySelector('#over').style.clipPath")
    shown.page.keyboard.press("ArrowRight")
    shown.page.keyboard.press("ArrowRight")
    assert shown.told("document.querySelector('#over').style.clipPath") != before
    assert shown.told("document.querySelector('#divide').style.left") == "52%"
    shown.page.keyboard.press("Home")
    assert shown.told("document.querySelector('#over').style.clipPath") == "inset(0px 100% 0px 0px)"


def test_the_divide_follows_the_pointer(shown: Opened) -> None:
    shown.page.locator("#compare").scroll_into_view_if_needed()
    box = shown.page.locator("#compare").bounding_box()
    assert box is not None
    shown.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    shown.page.mouse.down()
    shown.page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 40)
    shown.page.mouse.up()
    assert shown.page.locator("#split").input_value() == "25"


def test_the_selects_change_the_masks(shown: Opened) -> None:
    """At first: PyTorch on the left, on the right the engine that is worst on this picture."""
    right, before = pixels(shown, "#under"), state(shown)
    assert shown.page.locator("#left option:checked").inner_text() == "unet torch:fp32"
    assert shown.page.locator("#right option:checked").inner_text() == "unet ov:int8"
    shown.page.locator("#right").select_option(label="photograph")
    before = drawn(shown, after=before)
    assert pixels(shown, "#under") != right
    assert shown.page.locator("#right-name").inner_text() == "photograph"
    left = pixels(shown, "#over")
    shown.page.locator("#picture").select_option(label="1.png · 0.json")
    drawn(shown, after=before)
    assert pixels(shown, "#over") != left


def test_a_mask_is_drawn_in_its_colours_and_black_shows_the_photo(shown: Opened) -> None:
    before = state(shown)
    shown.page.locator("#right").select_option(label="photograph")
    before = drawn(shown, after=before)
    count = """() => {
        const [a, b] = ["#over", "#under"].map((name) => document.querySelector(name)).map((canvas) =>
            canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data);
        let same = 0;
        for (let i = 0; i < a.length; i += 4) same += a[i] === b[i] && a[i + 1] === b[i + 1] && a[i + 2] === b[i + 2];
        return same;
    }"""
    photo = photograph(made.HEIGHT, made.WIDTH, 0)
    black = int((made.class_map(photo) == 0).sum())
    assert black <= shown.told(count) <= black + 20  # a photograph may have a mask's own colour somewhere
    shown.page.locator("input[name=how][value=mask]").check()
    drawn(shown, after=before)
    colours = """() => {
        const canvas = document.querySelector("#over");
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        const seen = new Uint32Array(data.buffer);
        return [...new Set(seen)].map((value) => [value & 255, (value >> 8) & 255, (value >> 16) & 255]);
    }"""
    assert sorted(shown.told(colours)) == sorted(map(list, made.COLOURS))


def test_the_difference_counts_and_marks_the_pixels(shown: Opened) -> None:
    """The engine's mask differs from PyTorch's in the first three rows, but where those were class 1 already."""
    photo = photograph(made.HEIGHT, made.WIDTH, 0)
    count = int((made.class_map(photo) != made.class_map(photo, moved=3)).sum())
    assert f"differ in {count} of the 3,072 pixels shown" in shown.page.locator("#differs").inner_text()
    before = state(shown)
    shown.page.locator("input[name=how][value=difference]").check()
    drawn(shown, after=before)
    marked = """() => {
        const canvas = document.querySelector("#under");
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        let marked = 0;
        for (let i = 0; i < data.length; i += 4) marked += data[i] === 255 && data[i + 1] === 196 && data[i + 2] === 0;
        return marked;
    }"""
    assert shown.told(marked) == count


def test_a_worst_image_opens_in_the_comparison(shown: Opened) -> None:
    """By keyboard; then the divide has the focus."""
    before = state(shown)
    focus(shown, ".thumb >> nth=2").press("Enter")
    drawn(shown, after=before)
    assert shown.page.locator("#picture option:checked").inner_text() == "2.png · 0.json"
    shown.page.wait_for_function("document.activeElement.id === 'split'")


def test_a_table_sorts_by_keyboard(shown: Opened) -> None:
    heading = shown.page.locator("#table th", has_text="median ms")
    column = "[...document.querySelectorAll('#table tbody tr')].map(row => Number(row.cells[4].dataset.v))"
    button = heading.locator("button")
    button.focus()
    button.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert shown.told(column) == sorted(shown.told(column))
    button.press("Space")
    assert heading.get_attribute("aria-sort") == "descending"
    assert shown.told(column) == sorted(shown.told(column), reverse=True)
    assert shown.page.locator("#table th[aria-sort]").count() == 1


def test_a_table_shows_only_rows_with_all_words(shown: Opened) -> None:
    shown.page.locator("#filter").fill("segnet host int8")
    rows = [row.inner_text().lower() for row in shown.page.locator("#table tbody tr:not([hidden])").all()]
    assert rows
    assert all(word in row for row in rows for word in ("segnet", "host", "int8"))
    assert shown.page.locator("#filtered").inner_text().startswith(f"{len(rows)} of ")


def test_the_charts_follow_the_choice_of_level_and_batch(shown: Opened) -> None:
    visible = "[...document.querySelectorAll('.view')].map(view => view.offsetHeight > 0)"
    assert shown.told(visible) == [True, False, False, False]
    focus(shown, "input[name=view] >> nth=0").press("ArrowRight")
    assert shown.told(visible) == [False, True, False, False]


def test_the_data_come_back_whole(shown: Opened) -> None:
    with shown.page.expect_download() as download:
        shown.page.locator(".download").first.click()
    assert download.value.suggested_filename == "0.json"
    kept = Path(download.value.path()).read_text(encoding="utf-8")
    assert json.loads(kept) == made.document("unet", "segnet", pictures=3)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_ink_stands_out_from_paper(browser: "Browser", file: Path, scheme: str) -> None:
    """As the system says; the button turns it over. WCAG asks 4.5 of text; marks need 3."""
    page = opened(browser, file, color_scheme=scheme)
    contrast = """names => {
        const [ink, paper] = names.map((name) => {
            const probe = document.createElement("i");
            probe.style.color = `var(${name})`;
            document.body.append(probe);
            const rgb = getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255);
            probe.remove();
            const linear = rgb.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
            return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
        });
        return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    }"""
    for _ in range(2):
        for name in ("--ink", "--soft", "--accent", "--good", "--bad", "--warn"):
            assert page.page.evaluate(contrast, [name, "--paper"]) >= 4.5, name
        for number in range(8):
            assert page.page.evaluate(contrast, [f"--c{number}", "--paper"]) >= 3, number
        page.page.locator("#theme").click()
    before = page.told("getComputedStyle(document.body).backgroundColor")
    page.page.locator("#theme").click()
    assert page.told("getComputedStyle(document.body).backgroundColor") != before
    page.page.close()


def test_a_phone_scrolls_the_page_only_down(browser: "Browser", file: Path) -> None:
    page = opened(browser, file, PHONE)
    assert page.told("document.documentElement.scrollWidth <= innerWidth")
    outside = """[...document.querySelectorAll("main *, header *")].filter((each) =>
        !each.closest(".box, pre, svg, .hidden") && each.getBoundingClientRect().right > innerWidth + 1).length"""
    assert page.told(outside) == 0
    assert page.told("document.querySelector('#numbers .box').scrollWidth > innerWidth"), "nothing to scroll: no test"
    page.page.close()


def test_on_paper_everything_is_open(shown: Opened) -> None:
    shown.page.emulate_media(media="print")
    assert shown.told("[...document.querySelectorAll('.view')].every(view => view.offsetHeight > 0)")
    shown.page.wait_for_function("[...document.querySelectorAll('details')].every(each => each.open)")
    for control in ("nav", "#split", "#theme", "#views", "#filter"):
        assert not shown.page.locator(control).is_visible(), control
    assert shown.page.locator("#compare").is_visible()
    assert len(shown.page.pdf()) > 10_000


def test_without_scripts_the_numbers_are_there(browser: "Browser", file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator("#table tbody tr").first.is_visible()
    assert all(view.is_visible() for view in page.locator(".view").all())
    assert not page.locator("#theme").is_visible()
    assert page.locator("noscript").first.is_visible()
    context.close()


def test_the_keyboard_reaches_every_control(shown: Opened) -> None:
    """In the order of the page, from the link that skips to the verdict on."""
    shown.page.keyboard.press("Tab")
    assert shown.told("document.activeElement.className") == "skip"
    reached = set()
    for _ in range(150):
        reached.add(shown.told("document.activeElement.id || document.activeElement.className || ''"))
        shown.page.keyboard.press("Tab")
    assert {"theme", "filter", "picture", "left", "right", "split", "thumb", "copy js", "download js"} <= reached


def test_what_is_not_text_has_a_name(shown: Opened) -> None:
    nameless = """[...document.querySelectorAll("svg, canvas, select, input, button, [role=region]")].filter((each) =>
        each.getAttribute("aria-hidden") !== "true" && !each.getAttribute("aria-label")
        && !each.closest("label") && !each.textContent.trim()).map((each) => each.outerHTML.slice(0, 90))"""
    assert shown.told(nameless) == []
    assert shown.told("[...document.querySelectorAll('thead th')].every(each => each.scope === 'col')")
