"""The page of `check`, as text and in a real browser (Debian: apt-get install chromium)."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from hybrid_mobilenet.cli.check_page import EXAMPLES, page, write_page
from hybrid_mobilenet.cli.check_report import Report, make_report
from hybrid_mobilenet.training import plan as plans
from hybrid_mobilenet.training.setup import Setup
from noise_images import image_folder

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NASTY = "<script>alert(1)<&\"' é" + "x" * 60


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    root = image_folder(tmp_path_factory.mktemp("data") / "photos & more", {"cat": 20, NASTY: 12})
    (root / "cat/bad<b>.png").write_bytes(b"no image")
    (root / "cat/IMG_1.HEIC").write_bytes(b"a picture of a phone")
    (root / "cat/copy.png").write_bytes((root / NASTY / "000.png").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "SECONDS", 0.0)
        return make_report(Setup(str(root), delta=1, image_size=(8, 8)), None, "cpu")


def test_names_are_escaped(report: Report) -> None:
    text = page(report)
    assert "<script" not in text
    assert "<b>" not in text
    assert "&lt;script&gt;alert(1)&lt;&amp;&quot;&#x27; é" in text
    assert "photos &amp; more</title>" in text
    assert "bad&lt;b&gt;.png" in text


def test_it_needs_nothing_else(report: Report) -> None:
    text = page(report)
    assert re.findall(r"https?:|url\(|@import|<link|<script", text) == []
    assert set(re.findall(r'src="(.{10})', text)) == {"data:image"}


def test_it_shows_duplicates_and_examples_of_each_class(report: Report) -> None:
    text = page(report)
    duplicates, examples = (text.partition(f"<h2>{heading}</h2>")[2].partition("</section>")[0]
                            for heading in ("Duplicates", "Examples"))  # fmt: skip
    assert duplicates.count("<img") == 2
    assert "equal, in different classes (a wrong label?)" in duplicates
    assert "copy.png<br>cat, " in duplicates
    assert examples.count("<h3>") == 2
    assert examples.count("<img") == 2 * EXAMPLES
    assert "train would refuse this data: 1 of 34 images cannot be read" in text
    assert "skipped 1 file that is not an image: 1 .heic (convert them to JPEG" in text


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="not installed: chromium")
@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(report: Report, tmp_path: Path, width: int, scheme: str) -> None:
    write_page(report, tmp_path / "page.html")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            shown = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)  # type: ignore[arg-type]
            requests, errors = [], []
            shown.on("request", lambda request: requests.append(request.url[:30]))
            shown.on("console", lambda message: errors.append(message.text))
            shown.goto((tmp_path / "page.html").as_uri())
            assert [url for url in requests if not url.startswith(("file:", "data:"))] == errors == []
            assert shown.evaluate("document.documentElement.scrollWidth") <= width
            pictures = shown.evaluate("[...document.images].map(each => each.complete && each.naturalWidth)")
            assert pictures
            assert set(pictures) == {96}
            background = shown.evaluate("getComputedStyle(document.documentElement).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", background))) < 200) == (scheme == "dark")
            cells = shown.evaluate("[...document.querySelectorAll('th')].map(each => each.offsetHeight)")
            assert max(cells) < 60  # headings are not broken into letters
        finally:
            browser.close()
