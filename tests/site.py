"""What is asked of a built site: of its files, and of each page in headless Chromium. No assertions here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}
LEAST_FONT = 14  # CSS pixels of the text of a page on a phone
CHROMIUM = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

# What a page tells of itself. A picture is drawn if it has pixels, a formula if it has a size, a fraction if its
# numerator lies above its denominator.
FACTS = """() => {
  const box = element => element.getBoundingClientRect();
  const wide = [...document.querySelectorAll('article *')].filter(e => {
    for (let p = e; p && p.tagName !== 'ARTICLE'; p = p.parentElement)
      if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(p).overflowX)) return false;
    return box(e).right > innerWidth + 1;
  });
  return {
    width: document.documentElement.scrollWidth,
    visible: innerWidth,
    wide: wide.slice(0, 3).map(e => e.tagName + '.' + e.className + ' ' + e.textContent.slice(0, 40)),
    font: parseFloat(getComputedStyle(document.querySelector('article p, article li') || document.body).fontSize),
    images: [...document.images].filter(i => !(i.complete && i.naturalWidth > 0)).map(i => i.src),
    pictures: document.images.length,
    math: document.querySelectorAll('math').length,
    flat: [...document.querySelectorAll('math')].filter(m => box(m).width < 1 || box(m).height < 4).length,
    errors: document.querySelectorAll('merror').length,
    fractions: [...document.querySelectorAll('mfrac')].filter(
      f => box(f.children[0]).top >= box(f.children[1]).top).length,
    dollars: [...document.querySelectorAll('article p')].filter(p => {
      const text = [...p.childNodes].filter(n => n.nodeType === 3).map(n => n.data).join(' ');
      return /\\$[^$]+\\$|\\\\frac|\\\\sum/.test(text);
    }).map(p => p.textContent.slice(0, 60)),
  };
}"""


class _Page(HTMLParser):
    """The links and anchors of a page, and what it fetches."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attributes}
        self.anchors |= {named[name] for name in ("id", "name") if name in named}
        if tag == "a" and "href" in named:
            self.links.append(named["href"])
        self.fetched += [named[name] for name in ("src", "srcset") if name in named]
        if tag == "link" and named.get("rel") not in ("canonical", "next", "prev", "index", "search"):
            self.fetched.append(named.get("href", ""))


def pages(site: Path) -> list[Path]:
    """Return every page of a site."""
    return sorted(page for page in site.rglob("*.html") if "_static" not in page.parts)


def dead_links(site: Path) -> Iterator[str]:
    """Yield each internal link that leads to no file or no anchor, and whatever a page would fetch from elsewhere."""
    parsed = {page: _Page(page.read_text()) for page in pages(site)}
    for page, found in parsed.items():
        for link in [*found.links, *found.fetched]:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https") or link.startswith("//"):
                if link in found.fetched:
                    yield f"{page.relative_to(site)}: fetches {link}"
                continue
            if parts.scheme or not (parts.path or parts.fragment):
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                yield f"{page.relative_to(site)}: {link} leads to no file"
            elif parts.fragment and target in parsed and unquote(parts.fragment) not in parsed[target].anchors:
                yield f"{page.relative_to(site)}: {link} leads to no anchor"
    for sheet in site.rglob("*.css"):
        for address in re.findall(r"url\(['\"]?(https?:[^)'\"]+)|@import\s+['\"](https?:[^'\"]+)", sheet.read_text()):
            yield f"{sheet.relative_to(site)}: fetches {''.join(address)}"


class Browser:
    """Headless Chromium with one tab, and what went wrong in it since it was last asked."""

    def __init__(self, chromium: Any, executable: str):
        self.browser = chromium.launch(executable_path=executable, args=list(CHROMIUM))
        self.tab = self.browser.new_page(viewport=DESKTOP)
        self.wrong: list[str] = []
        self.tab.on("console", lambda message: self._note(message.type == "error", f"console: {message.text}"))
        self.tab.on("pageerror", lambda error: self._note(True, f"error: {error}"))
        self.tab.on("requestfailed", lambda request: self._note(True, f"not loaded: {request.url}"))
        self.tab.on("request", lambda r: self._note(not r.url.startswith(("file:", "data:")), f"fetches {r.url}"))

    def _note(self, is_wrong: bool, text: str) -> None:
        if is_wrong:
            self.wrong.append(text)

    def facts(self, page: Path, viewport: dict[str, int] | None = None) -> dict[str, Any]:
        """Open a page, and return what it tells of itself."""
        self.wrong = []
        self.tab.set_viewport_size(viewport or DESKTOP)
        self.tab.goto(page.as_uri(), wait_until="load")
        return self.tab.evaluate(FACTS)

    def faults(self, page: Path, viewport: dict[str, int] | None = None) -> list[str]:
        """Return all that is wrong with a page, in words."""
        facts = self.facts(page, viewport)
        wrong = list(self.wrong)
        if facts["width"] > facts["visible"]:
            wrong.append(f"{facts['width']} pixels wide, of {facts['visible']}: {facts['wide']}")
        if facts["font"] < LEAST_FONT:
            wrong.append(f"text of {facts['font']} pixels")
        wrong += [f"a picture that is not drawn: {source}" for source in facts["images"]]
        wrong += [f"{facts[name]} {name} formulas" for name in ("flat", "errors", "fractions") if facts[name]]
        return wrong + [f"a formula that is no formula: {text}" for text in facts["dollars"]]

    def close(self) -> None:
        """End the browser."""
        self.browser.close()
