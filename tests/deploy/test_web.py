"""The exported page in a real browser: Chromium, driven by Playwright, on a page served by the `web` command.

Skipped where Chromium, Node.js or npm is not installed (Debian: apt-get install chromium npm).
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from playwright.sync_api import Browser, JSHandle, Page, expect, sync_playwright

from hybrid_mobilenet import HybridMobileNet
from hybrid_mobilenet.data.images import read_image
from hybrid_mobilenet.data.splits import load_test
from hybrid_mobilenet.deploy.deployed import ExportError
from hybrid_mobilenet.deploy.web.export import export_web
from hybrid_mobilenet.deploy.web.onnxruntime_web import runtime_files
from processes import start_python

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = [name for name in ("node", "npm") if shutil.which(name) is None] + (["chromium"] if CHROMIUM is None else [])

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.slow,
]

CIFAR = Path(os.environ.get("HYBRID_MOBILENET_DATA", "/nonexistent")) / "cifar10" / "test.parquet"


def trained(model: HybridMobileNet) -> HybridMobileNet:
    """The model after a few steps on handwritten digits, enough to tell them apart."""
    digits = load_test("digits", image_size=model.network.image_size, channels=model.network.in_channels)
    optimizer = torch.optim.Adam(model.train().parameters(), lr=3e-3)
    for pool in model.fractional_max_pools():
        pool.eval()  # fixed regions are learnt sooner
    generator = torch.Generator().manual_seed(0)
    for _ in range(32):
        chosen = torch.randperm(len(digits), generator=generator)[:32]
        loss = torch.nn.functional.cross_entropy(model(digits.batch(chosen)), digits.labels[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = 1.0
    with torch.no_grad():
        model(digits.batch(torch.arange(256)))  # statistics of the last weights, not of all
    return model.eval()


@pytest.fixture(scope="module")
def real_images() -> torch.Tensor:
    """Test images: of CIFAR-10 where it is there, and digits; uint8 (n, 3, 32, 32)."""
    digits = load_test("digits", image_size=32).batch(torch.arange(12))
    return torch.cat([load_test("cifar10").batch(torch.arange(24)), digits]) if CIFAR.is_file() else digits


@pytest.fixture(scope="module")
def model() -> HybridMobileNet:
    torch.manual_seed(0)
    names = [f"class {letter}" for letter in "ABCDEFGHIJ"]
    return trained(HybridMobileNet("fmp", alpha=0.25, delta=2, class_names=names))


@pytest.fixture(scope="module")
def grey_model() -> HybridMobileNet:
    """Many classes with long names, for wide and grey images."""
    torch.manual_seed(1)
    names = [f"number {number} of a hundred, with-a-name-that-does-not-break-anywhere-at-all" for number in range(100)]
    model = HybridMobileNet("mobilenet", alpha=0.25, in_channels=1, image_size=(24, 40), class_names=names)
    return trained(model)


def exported(model: HybridMobileNet, folder: Path) -> Path:
    try:
        runtime_files()
    except ExportError as error:
        pytest.skip(str(error))
    assert export_web(model, folder).difference < 1e-4
    return folder


@pytest.fixture(scope="module")
def folder(model: HybridMobileNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(model, tmp_path_factory.mktemp("page") / "web")


@contextmanager
def served(folder: Path, *command: str) -> Iterator[str]:
    """The URL of a folder, served by the `web` command or another."""
    arguments = command or ("-m", "hybrid_mobilenet", "web", str(folder), "--port", "0", "--json")
    with start_python(*arguments, cwd=folder, stderr=None) as server:
        try:
            assert server.stdout
            first = server.stdout.readline()
            yield json.loads(first)["url"] if not command else first.split("(")[1].split(")")[0]
        finally:
            server.kill()


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with served(folder) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    arguments = ["--use-fake-device-for-media-stream", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@contextmanager
def opened(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """A page in a browser that has never seen it, once the model is loaded; nothing may go wrong on it meanwhile."""
    context = browser.new_context(**options)
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    own = (url, f"blob:{url}")
    page.on("request", lambda request: None if request.url.startswith(own) else problems.append(request.url))
    page.goto(url)
    loaded(page)
    yield page
    context.close()
    assert problems == []


@pytest.fixture(scope="module")
def page(browser: Browser, url: str) -> Iterator[Page]:
    with opened(browser, url, viewport={"width": 1280, "height": 800}) as page:
        yield page


def loaded(page: Page) -> None:
    expect(page.locator("#file")).to_be_enabled(timeout=60_000)


def transfer(page: Page, content: bytes, name: str = "picture", kind: str = "") -> JSHandle:
    """What a browser hands over when a file is dropped or pasted."""
    return page.evaluate_handle(
        """([content, name, type]) => {
          const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], name, { type }));
          return transfer;
        }""",
        [base64.b64encode(content).decode(), name, kind],
    )


def drop(page: Page, content: bytes) -> None:
    page.dispatch_event("#picture", "drop", {"dataTransfer": transfer(page, content)})
    expect(page.locator("main")).to_have_attribute("aria-busy", "false", timeout=60_000)


def probabilities(page: Page, model: HybridMobileNet) -> torch.Tensor:
    """What the page shows, in full precision, in the order of the classes."""
    rows = page.evaluate(
        """() => Array.from(document.querySelectorAll("#classes li"), (row) => [
          row.querySelector(".name").textContent, Number(row.style.getPropertyValue("--probability"))])"""
    )
    shown = dict(rows)
    return torch.tensor([shown[name] for name in model.class_names])


def network_input(page: Page) -> NDArray[np.uint8]:
    """The pixels that the page shows as the network's input, (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(png(page.evaluate("document.getElementById('input').toDataURL()")))))[
        ..., :3
    ]


def png(data_url: str) -> bytes:
    return base64.b64decode(data_url.partition(",")[2])


def encoded(image: Image.Image | NDArray[np.uint8], form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, form, **options)
    return file.getvalue()


def photograph(height: int, width: int, channels: int = 3) -> Image.Image:
    """Something with large and small structure."""
    rng = np.random.default_rng(height * width)
    coarse = Image.fromarray(rng.integers(256, size=(height // 16 + 2, width // 16 + 2, channels), dtype=np.uint8))
    noise = rng.integers(-20, 21, size=(height, width, channels))
    return Image.fromarray(np.clip(np.asarray(coarse.resize((width, height))) + noise, 0, 255).astype(np.uint8))


def expected(model: HybridMobileNet, content: bytes) -> tuple[NDArray[np.uint8], torch.Tensor]:
    """What Python makes of an image: the network's input as RGB (H, W, 3), and the probabilities."""
    image = read_image(content, model.network.image_size, model.network.in_channels)
    with torch.no_grad():
        return image.expand(3, -1, -1).permute(1, 2, 0).numpy(), model(image[None]).softmax(1)[0]


def agrees(page: Page, model: HybridMobileNet, content: bytes) -> None:
    """The page gives the network the same pixels as Python, and shows the same class and probabilities."""
    image, wanted = expected(model, content)
    np.testing.assert_array_equal(network_input(page), image)
    best = model.class_names[int(wanted.argmax())]
    expect(page.locator("#answer")).to_have_text(best)
    spoken = re.fullmatch(r"(.*), ([\d.]+)%, in [\d.]+ milliseconds", page.inner_text("#announcement"))
    assert spoken
    assert spoken[1] == best
    assert float(spoken[2]) == pytest.approx(100 * wanted.max().item(), abs=0.15)
    if len(model.class_names) <= 10:
        torch.testing.assert_close(probabilities(page, model), wanted, rtol=0, atol=1e-3)


def test_test_images_get_pytorch_s_class_and_probabilities(
    page: Page, model: HybridMobileNet, real_images: torch.Tensor
) -> None:
    classes = set()
    for image in real_images:
        content = encoded(image.permute(1, 2, 0).numpy())
        drop(page, content)
        agrees(page, model, content)
        classes.add(page.inner_text("#answer"))
    assert len(classes) >= 4  # the model does tell them apart
    assert float(page.inner_text("#time").removesuffix(" ms")) > 0


PICTURES = {
    "a photograph": encoded(photograph(600, 900), "JPEG", quality=90),
    "a tall one": encoded(photograph(333, 100)),
    "larger than a strip": encoded(photograph(700, 1100), "WEBP", lossless=True),
    "a small one": encoded(photograph(20, 24)),
    "partly transparent": encoded(photograph(32, 32, 4)),
    "transparent and large": encoded(photograph(300, 301, 4)),
    "grey": encoded(photograph(90, 60).convert("L")),
    "a palette": encoded(photograph(64, 64).convert("P"), "GIF"),
}


@pytest.mark.parametrize("content", PICTURES.values(), ids=PICTURES)
def test_pictures_become_the_pixels_that_pillow_makes(page: Page, model: HybridMobileNet, content: bytes) -> None:
    drop(page, content)
    agrees(page, model, content)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(page: Page, model: HybridMobileNet, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = encoded(photograph(80, 120), "JPEG", exif=exif)
    drop(page, content)
    agrees(page, model, content)


def test_other_shapes_and_many_classes_fit_a_small_phone(
    browser: Browser, grey_model: HybridMobileNet, tmp_path: Path
) -> None:
    with (
        served(exported(grey_model, tmp_path / "web")) as url,
        opened(browser, url, viewport={"width": 320, "height": 568}, has_touch=True) as page,
    ):
        for content in (encoded(photograph(50, 70)), encoded(photograph(200, 64))):
            drop(page, content)
            agrees(page, grey_model, content)
            assert page.evaluate("document.documentElement.scrollWidth") == 320
        expect(page.locator("#classes li")).to_have_count(10)
        page.get_by_role("button", name="Show all 100 classes").click()
        expect(page.locator("#classes li")).to_have_count(100)
        _, wanted = expected(grey_model, content)
        torch.testing.assert_close(probabilities(page, grey_model), wanted, rtol=0, atol=1e-3)
        assert page.evaluate("document.documentElement.scrollWidth") == 320
        page.get_by_role("button", name="Show fewer classes").click()
        expect(page.locator("#classes li")).to_have_count(10)


def test_by_keyboard_alone(page: Page, model: HybridMobileNet, tmp_path: Path) -> None:
    content = encoded(photograph(40, 40))
    (tmp_path / "picture.png").write_bytes(content)
    page.on("filechooser", lambda _: None)  # Playwright takes over the chooser, well before the key is pressed
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Tab")
    expect(page.locator("#file")).to_be_focused()
    outline = page.locator("label[for=file]").evaluate("(label) => getComputedStyle(label).outlineStyle")
    assert outline == "solid"  # the label stands for the input, which is not seen
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(tmp_path / "picture.png")
    expect(page.locator("main")).to_have_attribute("aria-busy", "false")
    agrees(page, model, content)
    page.keyboard.press("Tab")
    expect(page.locator("#camera")).to_be_focused()


def test_a_picture_is_pasted_with_the_keyboard(browser: Browser, url: str, model: HybridMobileNet) -> None:
    content = encoded(photograph(32, 32))
    with opened(browser, url, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.evaluate(
            """async (transfer) => {
              const [file] = transfer.files;
              await navigator.clipboard.write([new ClipboardItem({ "image/png": file })]);
            }""",
            transfer(page, content, kind="image/png"),
        )
        page.keyboard.press("Control+V")
        expect(page.locator("main")).to_have_attribute("aria-busy", "false")
        agrees(page, model, content)
        page.evaluate("navigator.clipboard.writeText('words')")
        page.keyboard.press("Control+V")
        expect(page.get_by_role("alert")).to_have_text("There is no picture in the clipboard.")


def test_a_screen_reader_finds_names_for_everything(page: Page) -> None:
    drop(page, encoded(photograph(32, 32)))
    tree = page.locator("body").aria_snapshot()
    for line in (
        'heading "What is in the picture?"',
        'button "Choose a picture"',
        'button "Use the camera"',
        'img "The picture"',
        'list "Classes, the most probable first"',
        'img "The picture as the network sees it"',
        "status: ",
    ):
        assert line in tree
    assert page.locator("#announcement").get_attribute("role") == "status"
    assert page.locator("html").get_attribute("lang") == "en"


def test_the_camera_is_followed_until_its_picture_is_taken(browser: Browser, url: str, model: HybridMobileNet) -> None:
    with opened(browser, url, permissions=["camera"]) as page:
        page.get_by_role("button", name="Use the camera").click()
        expect(page.locator("#video")).to_be_visible()
        expect(page.locator("#result")).to_be_visible()
        before = network_input(page)
        page.wait_for_timeout(500)
        assert (network_input(page) != before).any()  # Chromium's fake camera shows a clock
        page.get_by_role("button", name="Take this picture").click()
        expect(page.locator("#preview")).to_be_visible()
        expect(page.locator("#video")).to_be_hidden()
        expect(page.get_by_role("button", name="Use the camera")).to_be_visible()
        taken = page.locator("#preview").evaluate(
            """(image) => {
              const canvas = document.createElement("canvas");
              [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
              canvas.getContext("2d").drawImage(image, 0, 0);
              return canvas.toDataURL();
            }"""
        )
        agrees(page, model, png(taken))


def test_a_camera_that_is_refused_is_explained(browser: Browser, url: str) -> None:
    with opened(browser, url, permissions=[]) as page:
        page.get_by_role("button", name="Use the camera").click()
        expect(page.get_by_role("alert")).to_contain_text("Access to the camera was denied")


def damaged(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no picture at all", "This browser cannot read that as a picture"),
        (b"", "This browser cannot read that as a picture"),
        (damaged(encoded(photograph(80, 80), "WEBP")), "This browser cannot read that as a picture"),
        (encoded(Image.new("1", (20_000, 4_500))), "This picture has 20000 x 4500 pixels: choose one below 89 million"),
    ],
    ids=["text", "empty", "cut", "huge"],
)
def test_what_is_no_picture_gets_a_message(page: Page, model: HybridMobileNet, content: bytes, message: str) -> None:
    drop(page, content)
    expect(page.get_by_role("alert")).to_contain_text(message)
    expect(page.locator("#result")).to_be_hidden()
    drop(page, PICTURES["grey"])  # and the page goes on working
    expect(page.get_by_role("alert")).to_be_empty()
    agrees(page, model, PICTURES["grey"])


def test_a_drop_without_a_file_gets_a_message(page: Page) -> None:
    page.dispatch_event("#picture", "drop", {"dataTransfer": page.evaluate_handle("new DataTransfer()")})
    expect(page.get_by_role("alert")).to_contain_text("That was not a file")


def test_a_very_large_file_is_refused_before_it_is_read(page: Page) -> None:
    page.evaluate(
        """() => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(201e6)], "film.bin"));
          document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer }));
        }"""
    )
    expect(page.get_by_role("alert")).to_contain_text("This file has 201 MB: choose one below 200 MB.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_readable(page: Page, scheme: Any) -> None:
    drop(page, PICTURES["grey"])
    page.emulate_media(color_scheme=scheme)
    for element in ("h1", "#model", "#classes li .value", "#camera", "label[for=file]", "footer", "figcaption"):
        text, background = page.locator(element).first.evaluate(
            """(element) => {
              const text = getComputedStyle(element).color;
              while (getComputedStyle(element).backgroundColor === "rgba(0, 0, 0, 0)") element = element.parentElement;
              const numbers = (color) => color.match(/[0-9]+/g).map(Number);
              return [numbers(text), numbers(getComputedStyle(element).backgroundColor)];
            }"""
        )
        lighter, darker = sorted((luminance(text), luminance(background)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, element  # WCAG 2.2, level AA
        assert (luminance(background) < 0.2) == (scheme == "dark") or element == "label[for=file]"


def luminance(colour: list[int]) -> float:
    """WCAG's relative luminance of an sRGB colour, 0 to 1."""
    shares = np.array(colour[:3]) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def test_it_works_without_a_network_after_the_first_load(
    browser: Browser, folder: Path, model: HybridMobileNet
) -> None:
    content = PICTURES["a photograph"]
    context = browser.new_context()
    page = context.new_page()
    with served(folder) as url:
        page.goto(url)
        loaded(page)
        expect(page.locator("#offline")).to_have_text("This page now works without a network.", timeout=30_000)
    for address in (url, f"{url}index.html"):
        page.goto(address)
        loaded(page)
        drop(page, content)
        agrees(page, model, content)
    assert page.evaluate("crossOriginIsolated")
    context.close()


def test_any_static_server_serves_it(browser: Browser, folder: Path, model: HybridMobileNet) -> None:
    command = ("-u", "-m", "http.server", "0", "--bind", "127.0.0.1")
    with served(folder, *command) as url, opened(browser, url) as page:
        assert not page.evaluate("crossOriginIsolated")
        expect(page.locator("#runtime")).to_contain_text("1 thread")
        drop(page, PICTURES["grey"])
        agrees(page, model, PICTURES["grey"])
        expect(page.locator("#offline")).not_to_be_empty(timeout=30_000)
        page.reload()  # the service worker adds the headers that threads need
        loaded(page)
        assert page.evaluate("crossOriginIsolated")
        drop(page, PICTURES["grey"])
        agrees(page, model, PICTURES["grey"])


def test_a_large_network_gets_threads(browser: Browser, folder: Path, model: HybridMobileNet, tmp_path: Path) -> None:
    copy = tmp_path / "web"
    shutil.copytree(folder, copy)
    description = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps(description | {"mult_adds": 80e6}))
    with served(copy) as url, opened(browser, url) as page:
        cores = min(2, page.evaluate("navigator.hardwareConcurrency"))
        expect(page.locator("#runtime")).to_contain_text(f" {cores} thread")
        drop(page, PICTURES["grey"])
        agrees(page, model, PICTURES["grey"])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.onnx", None, "model.onnx cannot be loaded (404)"),
        ("model.onnx", b"no model", "The model cannot be run"),
        ("model.json", None, "model.json cannot be loaded (404)"),
        ("onnxruntime-web/ort.wasm.min.mjs", None, "onnxruntime-web cannot be loaded"),
        ("onnxruntime-web/ort-wasm-simd-threaded.wasm", None, "The model cannot be run"),
    ],
)
def test_a_missing_or_damaged_file_is_named(
    browser: Browser, folder: Path, tmp_path: Path, file: str, content: bytes | None, message: str
) -> None:
    copy = tmp_path / "web"
    shutil.copytree(folder, copy)
    (copy / file).unlink() if content is None else (copy / file).write_bytes(content)
    with served(copy, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1") as url:
        context = browser.new_context()
        page = context.new_page()
        page.goto(url)
        expect(page.get_by_role("alert")).to_contain_text(message, timeout=30_000)
        expect(page.locator("#file")).to_be_disabled()
        context.close()
