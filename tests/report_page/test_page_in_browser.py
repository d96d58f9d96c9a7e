"""The page of a report in a headless Chromium, on a desktop and on a phone, from the file system."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from page_files import job_list, sweep

from scoreline.commands import report
from scoreline.report_page import page as page_module

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")

SIZES = {"desktop": {"width": 1200, "height": 900}, "phone": {"width": 390, "height": 844}}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of 2 x 2 cells beside the fine run; a failed run, and a long name."""
    root = sweep(tmp_path_factory.mktemp("page") / "root", ("ddim", "velocity_ab3_with_quite_a_long_name"))
    job_list(root, "nfe=5,10")
    (root / "failed").mkdir()
    (root / "failed/error.log").write_text("InputError: " + "a_long_word_without_a_space" * 8)
    report.main([str(root), "--html", "metric=fid"])
    return (root / page_module.NAME).as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=SIZES)
def page(request: pytest.FixtureRequest, browser: Any, address: str) -> Iterator[Any]:
    """The open page; whatever it says on the console or asks for besides itself fails the test."""
    page, found = browser.new_page(viewport=SIZES[request.param]), list[str]()
    page.on("console", lambda message: found.append(message.text))
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith("data:") else found.append(asked.url))
    page.goto(address)
    yield page
    page.close()
    assert found == [address]


def test_nothing_is_wider_than_the_screen(page: Any) -> None:
    wide = "() => document.documentElement.scrollWidth - innerWidth"
    assert page.evaluate(wide) <= 0
    page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    assert page.evaluate(wide) <= 0
    page.locator(".photo").first.click()
    assert page.evaluate("() => viewer.scrollWidth - viewer.clientWidth") <= 0


def test_values_appear_on_hovering_and_on_focus(page: Any) -> None:
    tip = page.locator("#tip")
    assert tip.is_hidden()
    page.locator("#cell-0-0-1").hover()
    assert tip.inner_text() == "ddim / t, NFE 10\nfid 9.00 ± 0.25, n = 10\nNFE 10"
    page.mouse.move(0, 0)
    assert tip.is_hidden()
    page.locator("#cell-0-0-0").focus()
    page.keyboard.press("Tab")
    assert tip.inner_text().startswith("ddim / t, NFE 10")
    page.keyboard.press("Tab")
    mark = page.locator(".chart #point-1-0")
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 + 2, box["y"] + box["height"] / 2)
    assert "NFE 5\nfid 8.00 ± 0.25" in tip.inner_text()


def test_the_head_of_a_column_sorts(page: Any) -> None:
    def names() -> list[str]:
        return [name[:4] for name in page.locator(".figures tbody th").all_inner_texts()]

    head = page.locator(".figures").get_by_role("columnheader", name="NFE 5")
    assert names() == ["ddim", "velo"]
    head.get_by_role("button").click()
    assert names() == ["velo", "ddim"], "8 before 10"
    assert head.get_attribute("aria-sort") == "ascending"
    head.get_by_role("button").click()
    assert names() == ["ddim", "velo"]


def test_a_name_hides_its_row(page: Any) -> None:
    label, mark, other = (page.locator(f".chart #{name}") for name in ("label-0", "point-0-0", "point-1-0"))
    for word in ("click", "key"):
        label.click() if word == "click" else label.press("Enter")
        assert mark.is_visible() == (word == "key")
        assert other.is_visible()
    assert page.locator(".chart .off").count() == 0
    label.click()
    assert page.locator(".chart #row-0, .chart [id^='row-0-']").evaluate_all(
        "all => all.length && all.every(one => getComputedStyle(one).display === 'none')"
    )


def test_a_picture_is_enlarged_and_flips_in_place(page: Any) -> None:
    viewer, large = page.locator("#viewer"), page.locator("#large")
    sources = page.locator(".photo img").evaluate_all("all => all.map(one => one.src)")
    page.locator(".photo").first.click()
    assert viewer.is_visible()
    assert large.get_attribute("src") == sources[0]
    assert large.evaluate("it => getComputedStyle(it).imageRendering") == "pixelated"
    place = large.bounding_box()
    page.keyboard.press(" ")
    assert large.get_attribute("src") == sources[1], "the last one of the row"
    assert large.bounding_box() == place, "the pixels stay where they are"
    large.click()
    assert large.get_attribute("src") == sources[0]
    page.keyboard.press("ArrowDown")
    assert large.get_attribute("src") == sources[2]
    assert page.locator("#viewer-detail").inner_text().count("run directory") == 1
    page.keyboard.press("Escape")
    assert viewer.is_hidden()


def test_two_chosen_cells_flip(page: Any) -> None:
    sources = page.locator(".photo img").evaluate_all("all => all.map(one => one.src)")
    boxes = page.locator(".chosen")
    boxes.nth(3).check()
    boxes.nth(0).click()
    shown = []
    for _ in range(3):
        shown.append(page.locator("#large").get_attribute("src"))
        page.keyboard.press(" ")
    assert shown == [sources[3], sources[0], sources[3]]
    page.locator("#close").click()
    assert page.locator("#viewer").is_hidden()
    assert page.locator(".chosen:checked").count() == 0


def test_a_cell_opens_its_runs_by_keyboard(page: Any) -> None:
    page.locator("#cell-0-1-1").press("Enter")
    assert "nfe=10,solver=velocity_ab3_with_quite_a_long_name" in page.locator("#viewer-detail").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("#cell-0-1-1").evaluate("it => it === document.activeElement"), "the focus comes back"
