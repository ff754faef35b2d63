"""The page in a real browser: what it shows, and what it does when pointed at, clicked and typed at."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from revbifpn import set_reversible
from revbifpn.memory import MemoryReport, TensorRecord, format_bytes, profile_training
from revbifpn.memory.page import write_page
from revbifpn.memory.rows import ACCURACY, MEMORY_TEXT, PRINTED, ComparisonRow
from tests.memory.conftest import make_tiny

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_DRIVER = shutil.which("chromedriver")
#: Set by continuous integration where there has to be a browser: then nothing here is skipped.
_REQUIRED = os.environ.get("REVBIFPN_BROWSER") == "required"
needs_browser = pytest.mark.skipif(
    (_CHROMIUM is None or _DRIVER is None) and not _REQUIRED,
    reason="needs a browser and its driver: apt-get install chromium chromium-driver",
)
_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
)

TIMES, DASH = "\u00d7", "\u2013"
#: Names come from users: this one must stay text.
EVIL = "</script><script>window.evil=1</script><img src=x onerror='window.evil=1'>{{js}}"


@pytest.fixture(scope="module")
def reports() -> list[MemoryReport]:
    """Two modes of a model; another model, named badly."""
    torch.manual_seed(0)
    model = make_tiny().train()
    images = torch.empty(4, 3, 128, 128, device="meta")
    reversible = profile_training(model, images, optimizer="adamw", name="tiny", mode="reversible")
    set_reversible(model, False)
    stored = profile_training(model, images, optimizer="adamw", name="tiny", mode="stored")
    evil = profile_training(model, images[:2], name=EVIL, mode="stored", device="cuda")
    assert stored.peak > reversible.peak
    return [reversible, stored, evil]


@pytest.fixture(scope="module")
def rows() -> list[ComparisonRow]:
    def row(name: str, macs: float | None, per_sample: float, **changes: Any) -> ComparisonRow:
        base = ComparisonRow(
            name, "net", "stored", "predicted", (224, 224), 16, 5_000_000, macs, per_sample, 10**9 / 16, 10**9, top1=80.0
        )
        return replace(base, **changes)

    return [
        row("net_10", 9e9, 2e8, top1=83.5),
        row("net_9", 2e8, 9.5e7, top1=71.5),
        row("net_9", 2e8, 6_610_000, top1=71.5, mode="reversible"),
        row(EVIL, None, 4e8, top1=None, peak=None, image=None, params=None, method=PRINTED),
    ]


@pytest.fixture(scope="module")
def page(reports: list[MemoryReport], rows: list[ComparisonRow], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "folder" / "page.html"
    write_page(path, reports, rows, title="Memory <of> & steps", environment="PyTorch <3>")
    return path


# ---- the file --------------------------------------------------------------------------------------------------------
def data_of(path: Path) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_file_needs_nothing_else(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"\b(src|href)=[\"'](?!data:)", text.replace(EVIL, ""))
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    assert "@import" not in text
    assert text.count("<script") == 2, "names cannot open elements"
    assert "<title>Memory &lt;of&gt; &amp; steps</title>" in text
    assert page.stat().st_size < 400_000


def test_the_data_is_complete(page: Path, reports: list[MemoryReport], rows: list[ComparisonRow]) -> None:
    data = data_of(page)
    strings = data["strings"]
    for packed, report in zip(data["reports"], reports, strict=True):
        assert [point[:2] for point in packed["timeline"]] == [[p.index, p.nbytes] for p in report.timeline]
        assert [strings[point[3]] for point in packed["timeline"]] == [p.operator for p in report.timeline]
        largest = report.tensors[0]
        texts = ("dtype", "category", "kind", "operator", "module", "stage", "stream", "phase")
        assert [strings[number] for number in packed["tensors"][0][2:]] == [getattr(largest, name) for name in texts]
        assert packed["per_sample"] == report.per_sample
    assert data["reports"][2]["name"] == EVIL
    assert [row["per_sample"] for row in data["rows"]] == [row.per_sample for row in rows]


def test_nothing_to_show() -> None:
    with pytest.raises(ValueError, match="at least one report"):
        write_page(Path("never.html"), [])


# ---- the browser -----------------------------------------------------------------------------------------------------
class Page:
    """The page in the browser, spoken to in CSS selectors."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, path: Path, width: int = 1280, dark: bool = False) -> Page:
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get(path.as_uri())
        return self

    def all(self, css: str) -> list[Any]:
        found: list[Any] = self.driver.find_elements("css selector", css)
        return found

    def one(self, css: str) -> Any:
        return self.driver.find_element("css selector", css)

    def text(self, css: str) -> str:
        value: str = self.one(css).text
        return value

    def run(self, script: str, *args: Any) -> Any:
        return self.driver.execute_script(script, *args)

    def point(self, node: Any, x: float = 0, y: float = 0) -> None:
        """Move the mouse to a place relative to an element's middle."""
        from selenium.webdriver import ActionChains

        self.run("arguments[0].scrollIntoView({block: 'center'})", node)
        ActionChains(self.driver, duration=0).move_to_element_with_offset(node, round(x), round(y)).perform()

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.driver, duration=0).send_keys(*keys).perform()

    def tooltip(self) -> dict[str, str]:
        """The tooltip's facts; its title under ``""``; empty while it is hidden."""
        script = """const tip = document.getElementById("tooltip"), facts = {};
            if (tip.hidden) return facts;
            facts[""] = tip.querySelector("strong").textContent;
            tip.querySelectorAll("span").forEach((s) => { facts[s.textContent] = s.nextSibling.textContent; });
            return facts;"""
        facts: dict[str, str] = self.run(script)
        return facts

    def figures(self) -> dict[str, str]:
        return {
            box.find_element("css selector", "dt").text: box.find_element("css selector", "dd").text
            for box in self.all("#figures div")
        }

    def leaves(self) -> int:
        return len(self.all("#treemap .leaf"))

    def rectangles(self) -> list[tuple[float, float, float, float]]:
        """Left, top, width and height of the treemap's leaves."""
        script = """return [...document.querySelectorAll("#treemap .leaf")].map(
            (leaf) => ["x", "y", "width", "height"].map((name) => Number(leaf.getAttribute(name))))"""
        return [tuple(box) for box in self.run(script)]

    def mode(self, name: str) -> None:
        next(button for button in self.all("#modes button") if button.text.startswith(name)).click()

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if not _REQUIRED:
        pytest.importorskip("selenium", reason="needs selenium: pip install selenium")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = _CHROMIUM
    for flag in _FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(_DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def at(driver: Any, page: Path) -> Iterator[Page]:
    """The page, freshly opened; whatever a test does with it must leave no error in the console."""
    browser = Page(driver).open(page)
    yield browser
    assert browser.errors() == []
    assert browser.run("return window.evil") is None


def shown(tensor: TensorRecord) -> str:
    return f" {TIMES} ".join(map(str, tensor.shape))


@needs_browser
def test_head_and_tables(at: Page, reports: list[MemoryReport]) -> None:
    report = reports[0]
    assert at.text("h1") == "Memory <of> & steps"
    assert at.text("#environment") == "PyTorch <3>"
    figures = at.figures()
    assert figures["peak of the step"] == format_bytes(report.peak)
    assert figures["grows with each sample"] == format_bytes(report.per_sample)
    assert figures["batch"] == "4"
    assert figures["image"] == f"128 {TIMES} 128"
    assert (figures["optimizer"], figures["method"], figures["device"]) == ("adamw", "predicted", "cpu")
    for grouping in ("categories", "stages", "streams", "kinds"):
        cells = [
            [td.text for td in tr.find_elements("css selector", "td")] for tr in at.all(f"[data-table={grouping}] tbody tr")
        ]
        expected = {name: format_bytes(nbytes) for name, nbytes in getattr(report, grouping).items() if nbytes}
        assert {name: size for name, size, *_ in cells} == expected
    sizes = [tr.find_element("css selector", "td").text for tr in at.all("#largest tbody tr")]
    assert sizes == [format_bytes(tensor.nbytes) for tensor in report.tensors[:10]]


@needs_browser
def test_sizes_are_written_as_in_python(at: Page, rows: list[ComparisonRow], tmp_path: Path) -> None:
    sizes = [1, 999, 1000, 9994, 9996, 99_949, 999_400, 999_600, 1_536_000, 12_000_000, 999_499_999, 999_500_000, 3.456e12]
    write_page(
        tmp_path / "sizes.html", [], [replace(rows[0], name=f"net_{i}", per_sample=size) for i, size in enumerate(sizes)]
    )
    at.open(tmp_path / "sizes.html")
    assert not at.one("#report").is_displayed()
    assert [cell.text for cell in at.all("#rows tbody td:nth-child(9)")] == [format_bytes(size) for size in sizes]


@needs_browser
def test_pointing_at_the_timeline(at: Page, reports: list[MemoryReport]) -> None:
    report = reports[0]
    mark = at.one("#timeline .peak-mark")
    at.point(mark)
    tooltip = at.tooltip()
    near = min(report.timeline, key=lambda p: abs(p.index - int(tooltip["operator"].split()[0])))
    assert abs(near.index - report.peak_index) <= 2, "at most a pixel away"
    assert tooltip[""] == format_bytes(near.nbytes)
    assert tooltip["operator"] == f"{near.index} of {report.num_operators}"
    assert (tooltip["phase"], tooltip["runs"]) == (near.phase, near.operator)
    assert tooltip["module"] == (near.module or "the step itself")
    at.point(at.one("h1"))
    assert at.tooltip() == {}


@needs_browser
def test_the_timeline_with_the_keyboard(at: Page, reports: list[MemoryReport]) -> None:
    from selenium.webdriver.common.keys import Keys

    report = reports[0]
    at.run("document.getElementById('overlay').focus()")
    at.press(Keys.TAB)
    plot = at.one("#timeline svg")
    assert plot == at.driver.switch_to.active_element
    assert at.tooltip()[""] == format_bytes(report.peak), "it starts at the peak"
    at.press(Keys.ARROW_RIGHT)
    after = report.timeline[report.timeline.index(report.peak_point) + 1]
    assert at.tooltip()["operator"].startswith(f"{after.index} of")
    assert plot.get_attribute("aria-valuenow") == str(after.index)
    assert format_bytes(after.nbytes) in plot.get_attribute("aria-valuetext")
    at.press(Keys.HOME, Keys.ARROW_LEFT)
    assert at.tooltip()["operator"].startswith("0 of")
    at.press(Keys.END)
    assert at.tooltip()["phase"] == "optimizer"
    at.press(Keys.ESCAPE)
    assert at.tooltip() == {}


@needs_browser
def test_phases_and_other_modes(at: Page) -> None:
    assert [node.text for node in at.all("#timeline .phase-name")] == ["forward", "backward", "optimizer"]
    assert len(at.all("#timeline .ghost")) == 1
    at.one("#overlay").click()
    assert len(at.all("#timeline .ghost")) == 0


@needs_browser
def test_pointing_at_the_treemap(at: Page, reports: list[MemoryReport]) -> None:
    report = reports[0]
    largest = max((leaf for leaf in at.all("#treemap .leaf")), key=lambda leaf: leaf.size["width"] * leaf.size["height"])
    at.point(largest)
    tooltip = at.tooltip()
    tensor = report.tensors[0]
    assert tooltip["size"].startswith(f"{format_bytes(tensor.nbytes)}, {100 * tensor.nbytes / report.peak:.1f} %")
    same = [t for t in report.tensors if t.nbytes == tensor.nbytes and t.kind == tooltip[""]]
    names = ("category", "operator", "module", "stage", "stream")
    assert any(shown(t) == tooltip.get("shape", "") and all(getattr(t, n) == tooltip.get(n, "") for n in names) for t in same)


@needs_browser
def test_areas_of_the_treemap_are_bytes(at: Page, reports: list[MemoryReport]) -> None:
    from selenium.webdriver.common.keys import Keys

    report = reports[0]
    category = max(report.categories, key=lambda name: report.categories[name])
    stage = next(t.stage for t in report.tensors if t.category == category)
    at.one(f"#treemap [data-way='[\"{category}\"]']").send_keys(Keys.ENTER)
    at.one(f"#treemap [data-way='{json.dumps([category, stage], separators=(',', ':'))}']").send_keys(Keys.ENTER)
    tensors = sorted(t.nbytes for t in report.tensors if t.category == category and t.stage == stage)
    areas = sorted(w * h for _, _, w, h in at.rectangles())
    width, height = at.run(
        "return ['width', 'height'].map((side) => document.querySelector('#treemap svg').viewBox.baseVal[side])"
    )
    assert sum(areas) == pytest.approx(width * height, rel=0.001), "they fill the picture"
    expected = [width * height * nbytes / sum(tensors) for nbytes in tensors]
    assert areas == pytest.approx(expected[-len(areas) :], rel=0.001)


@needs_browser
def test_leaves_of_the_treemap_lie_side_by_side(at: Page) -> None:
    boxes = at.rectangles()
    assert len(boxes) > 20
    for i, (x, y, w, h) in enumerate(boxes):
        for left, top, wide, high in boxes[:i]:
            apart = min(x + w, left + wide) - max(x, left), min(y + h, top + high) - max(y, top)
            assert min(apart) < 1e-6, "two leaves overlap"


@needs_browser
def test_zooming_in_and_back(at: Page, reports: list[MemoryReport]) -> None:
    from selenium.webdriver.common.keys import Keys

    report = reports[0]
    whole = at.leaves()
    category = max(report.categories, key=lambda name: report.categories[name])
    group = at.one(f"#treemap [data-way='[\"{category}\"]']")
    at.point(group.find_element("css selector", ".leaf"))
    group.find_element("css selector", ".leaf").click()
    inside = [t for t in report.tensors if t.category == category]
    assert at.leaves() <= len(inside)
    assert at.tooltip() == {}
    assert category in at.text("#crumbs")
    assert {json.loads(g.get_attribute("data-way"))[1] for g in at.all("#treemap .group")} == {t.stage for t in inside}
    at.one("#treemap .group").send_keys(Keys.ENTER)
    assert len(at.all("#crumbs button")) == 2
    assert at.all("#treemap .group") == []
    at.press(Keys.ESCAPE)
    assert len(at.all("#crumbs button")) == 1
    at.one("#crumbs button").click()
    assert at.text("#crumbs") == ""
    assert at.leaves() == whole
    button = next(b for b in at.all("#legend button") if b.text.startswith("buffers"))
    button.click()
    assert "buffers" in at.text("#crumbs"), "the legend leads into what is too small to point at"


@needs_browser
def test_switching_modes(at: Page, reports: list[MemoryReport]) -> None:
    before = at.one("#treemap").get_attribute("innerHTML")
    pressed = at.all("#modes button[aria-pressed=true]")
    assert [button.text.split()[0] for button in pressed] == ["reversible"]
    at.mode("stored")
    assert at.figures()["peak of the step"] == format_bytes(reports[1].peak)
    assert at.one("#treemap").get_attribute("innerHTML") != before
    assert at.one("#modes button[aria-pressed=true]") == at.driver.switch_to.active_element, "the keyboard stays where it was"
    assert f"operator {reports[1].peak_index} of {reports[1].num_operators}" in at.text("#peak-text")


@needs_browser
def test_switching_models(at: Page, reports: list[MemoryReport]) -> None:
    options = at.all("#model option")
    assert [option.text for option in options] == ["tiny", EVIL]
    options[1].click()
    assert at.figures()["peak of the step"] == format_bytes(reports[2].peak)
    assert at.figures()["batch"] == "2"
    assert [note.text for note in at.all("#notes li")] == reports[2].notes
    assert not at.one("#overlay-field").is_displayed()


@needs_browser
def test_pointing_at_the_comparison(at: Page) -> None:
    assert len(at.all("#scatter-macs [data-name]")) == 3
    assert len(at.all("#scatter-accuracy [data-name]")) == 3
    for chart in ("#scatter-macs", "#scatter-accuracy"):
        at.point(at.one(f"{chart} [data-name='net_9'][data-mode=reversible]"))
        tooltip = at.tooltip()
        assert tooltip[""] == "net_9"
        assert (tooltip["mode"], tooltip["memory per sample"], tooltip["MACs"]) == ("reversible", "6.61 MB", "200 M")
        assert (tooltip["whole step"], tooltip["whole step per sample"]) == ("1 GB", "62.5 MB")
        assert (tooltip[ACCURACY["top1"]], tooltip["batch"]) == ("71.5", "16")
    high, low = (at.one(f"#scatter-macs [data-name='{name}'][data-mode=stored]") for name in ("net_10", "net_9"))
    assert high.location["x"] > low.location["x"]
    assert high.location["y"] < low.location["y"]


@needs_browser
def test_sorting_the_table(at: Page) -> None:
    def column(number: int) -> list[str]:
        return [cell.text for cell in at.all(f"#rows tbody td:nth-child({number})")]

    def sort(number: int) -> str:
        at.one(f"#rows th:nth-child({number}) button").click()
        value: str = at.one(f"#rows th:nth-child({number})").get_attribute("aria-sort")
        return value

    assert column(1) == ["net_10", "net_9", "net_9", EVIL]
    assert sort(9) == "ascending"
    assert column(9) == ["6.61 MB", "95 MB", "200 MB", "400 MB"]
    assert sort(9) == "descending"
    assert column(9) == ["400 MB", "200 MB", "95 MB", "6.61 MB"]
    assert sort(8) == "ascending"
    assert column(8) == ["200 M", "200 M", "9 G", DASH]
    assert sort(8) == "descending"
    assert column(8) == ["9 G", "200 M", "200 M", DASH], "unknown comes last in both orders"
    sort(1)
    assert [name for name in column(1) if name != EVIL] == ["net_9", "net_9", "net_10"], "numbers in names count"
    assert len(at.all("#rows th[aria-sort]")) == 1


@needs_browser
def test_another_memory_and_another_accuracy(at: Page, rows: list[ComparisonRow], tmp_path: Path) -> None:
    """Detectors have box AP, and the memory of their whole step; what is not known of a row is not drawn."""
    detectors = [replace(row, top1=None, box_ap=30.0 + n, step_per_sample=(n + 1) * 1e9) for n, row in enumerate(rows[:3])]
    detectors.append(replace(rows[3], box_ap=39.4, per_sample=None, step_per_sample=5e8))
    write_page(tmp_path / "steps.html", [], detectors, memory="step_per_sample")
    at.open(tmp_path / "steps.html")
    assert at.text("#memory-text") == MEMORY_TEXT["step_per_sample"]
    heads = [head.text for head in at.all("#rows th")]
    assert heads[8:] == ["memory per sample", "whole step per sample", "whole step", ACCURACY["box_ap"]]
    assert [cell.text for cell in at.all("#rows tbody td:nth-child(9)")][-1] == DASH
    assert [cell.text for cell in at.all("#rows tbody td:nth-child(10)")] == ["1 GB", "2 GB", "3 GB", "500 MB"]
    assert [cell.text for cell in at.all("#rows tbody td:nth-child(12)")] == ["30.0", "31.0", "32.0", "39.4"]
    assert (len(at.all("#scatter-macs [data-name]")), len(at.all("#scatter-accuracy [data-name]"))) == (3, 4)
    lowest = at.one("#scatter-accuracy [data-name='net_10']")
    at.point(lowest)
    assert (at.tooltip()["whole step per sample"], at.tooltip()[ACCURACY["box_ap"]]) == ("1 GB", "30")
    write_page(tmp_path / "samples.html", [], detectors)
    at.open(tmp_path / "samples.html")
    assert at.text("#memory-text") == MEMORY_TEXT["per_sample"]
    assert len(at.all("#scatter-accuracy [data-name]")) == 3


@needs_browser
@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_overflows(at: Page, page: Path, width: int) -> None:
    at.open(page, width)
    assert at.run("return innerWidth") == width
    assert at.run("return document.documentElement.scrollWidth") <= width
    script = """return [...document.querySelectorAll("body *")].filter((node) =>
        !node.closest(".scroll table, #tooltip, option") && node.getBoundingClientRect().right > innerWidth + 1)
        .map((node) => node.outerHTML)"""
    assert at.run(script) == []
    at.point(at.one("#timeline .peak-mark"))
    box = at.one("#tooltip").rect
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width


@needs_browser
def test_dark_and_light(at: Page, page: Path) -> None:
    def brightness() -> int:
        colour = at.run("return getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    light = brightness()
    at.open(page, dark=True)
    assert light > 600
    assert brightness() < 150


@needs_browser
def test_a_report_alone(at: Page, reports: list[MemoryReport], tmp_path: Path) -> None:
    plain = replace(reports[0], mode="", image=None)
    write_page(tmp_path / "alone.html", [plain])
    at.open(tmp_path / "alone.html")
    assert not at.one("#comparison").is_displayed()
    assert not at.one("#model-field").is_displayed()
    assert at.text("#modes").startswith("step")
    assert at.figures()["image"] == DASH


@needs_browser
def test_predictions_and_measurements_side_by_side(at: Page, reports: list[MemoryReport], tmp_path: Path) -> None:
    write_page(tmp_path / "both.html", [reports[0], replace(reports[0], method="measured", peak=reports[0].peak + 10**6)])
    at.open(tmp_path / "both.html")
    assert [b.text.rsplit(" ", 2)[0] for b in at.all("#modes button")] == [
        "reversible, predicted, cpu",
        "reversible, measured, cpu",
    ]
    at.mode("reversible, measured")
    assert at.figures()["method"] == "measured"
