"""The built site in headless Chromium: ``make docs`` builds it and runs this; elsewhere nothing is built to look at."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from docs.book.subjects import subjects

from . import site
from .site import DESKTOP, PHONE, Browser

SITE = os.environ.get("CUSTOMOPS_TEST_SITE")  # the folder of the built site
pytestmark = pytest.mark.skipif(not SITE, reason="no site is built here: make docs builds it and runs these tests")
BUILT = Path(SITE or ".").resolve()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - of the extra docs

    executable = shutil.which("chromium")
    assert executable, "the site is looked at in Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        opened = Browser(playwright.chromium, executable)
        yield opened
        opened.close()


def test_no_link_is_dead_and_nothing_is_fetched():
    assert list(site.dead_links(BUILT)) == []
    assert len(site.pages(BUILT)) > len(subjects())


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_every_page_is_drawn_and_readable(browser, viewport):
    faults = {str(page.relative_to(BUILT)): browser.faults(page, viewport) for page in site.pages(BUILT)}
    assert {page: wrong for page, wrong in faults.items() if wrong} == {}


def test_every_operator_and_layer_has_a_page_with_formulas_a_picture_and_edges(browser):
    for subject in subjects():
        facts = browser.facts(BUILT / subject.kind / f"{subject.name}.html")
        assert facts["pictures"] >= 1, subject.name
        assert browser.tab.locator("table.edges td").count() >= 9, subject.name
        assert browser.tab.locator("dl.py").count() >= 1, subject.name
    facts = browser.facts(BUILT / "operators" / "sigmoid.html")
    assert facts["math"] >= 10


def test_the_menu_opens_on_a_phone(browser):
    browser.facts(BUILT / "index.html", PHONE)
    entry = browser.tab.locator(".sidebar-tree a", has_text="Layers").first
    assert not entry.is_visible() or entry.bounding_box()["x"] < 0
    browser.tab.locator("label[for='__navigation']:visible").first.click()
    browser.tab.wait_for_function("document.querySelector('.sidebar-drawer').getBoundingClientRect().left >= 0")


HEAD = (
    "<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'><link rel=icon href='data:,'>"
)
FAULTS = {
    "a console error": ("console", "<script>console.error('no')</script>"),
    "a script that fails": ("error:", "<script>nothing.at.all</script>"),
    "a script from elsewhere": ("fetches", "<script src='https://example.invalid/x.js'></script>"),
    "a picture that is not there": ("not drawn", "<article><img src=nothing.svg></article>"),
    "a wide line": ("pixels wide", "<article><div style='width:600px'>x</div></article>"),
    "small print": ("text of", "<article><p style='font-size:9px'>x</p></article>"),
    "a formula without a size": ("flat", "<article><math></math></article>"),
    "a formula in LaTeX": ("no formula", "<article><p>$x$ and $y$</p></article>"),
    "a fraction on one line": ("fractions", "<math><mfrac style='display:flex'><mi>a</mi><mi>b</mi></mfrac></math>"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_browser_sees_a_fault(browser, fault, tmp_path):
    expected, body = FAULTS[fault]
    page = tmp_path / "page.html"
    page.write_text(HEAD + body)
    assert any(expected in wrong for wrong in browser.faults(page, PHONE))


@pytest.mark.parametrize(
    "body", ["<a href=no.html>x</a>", "<a href='#no'>x</a>", "<img src='https://example.invalid/x'>"]
)
def test_a_dead_link_is_seen(body, tmp_path):
    (tmp_path / "page.html").write_text(HEAD + body)
    assert list(site.dead_links(tmp_path))
