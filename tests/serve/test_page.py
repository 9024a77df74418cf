"""The page in a browser: Debian's Chromium, at 390 and 1400 pixels. Skipped where there is none."""

import io
import json
import shutil
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the server needs explainode[serve]")
pytest.importorskip("uvicorn", reason="the server needs explainode[serve]")
playwright = pytest.importorskip("playwright.sync_api", reason="the tests of the page need playwright")
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="the tests of the page need Chromium (apt-get install chromium)"),
    pytest.mark.xdist_group("browser"),
]
STATIC = Path(__file__).parents[2] / "src" / "explainode" / "serve" / "static"
DONE = "#grid[aria-busy=false] .cell:not(.waiting)"


@pytest.fixture(scope="module")
def address(desk):
    import uvicorn

    from explainode.serve.app import make_app

    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port = trial.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(make_app(desk, {"127.0.0.1"}), port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as session:
        opened = session.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield opened
        opened.close()


@pytest.fixture
def page(browser, address, request):
    width = getattr(request, "param", 1400)
    context = browser.new_context(viewport={"width": width, "height": 900}, accept_downloads=True)
    page = context.new_page()
    page.faults, page.outside = [], []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on(
        "console",
        lambda line: page.faults.append(line.text) if line.type == "error" and "status of 4" not in line.text else None,
    )
    page.on(
        "request",
        lambda sent: None if sent.url.startswith((address, "data:", "blob:")) else page.outside.append(sent.url),
    )
    page.goto(f"{address}#methods=gradcam,saliency,random_map")
    page.wait_for_selector(DONE, timeout=60_000)
    yield page
    assert page.faults == [] and page.outside == []
    context.close()


@pytest.mark.parametrize("page", [390, 1400], indirect=True)
def test_the_first_view_fits_and_says_what_there_is(page):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("#maps canvas:visible").count() == 6
    assert page.locator("#predictions .network").count() == 2
    assert "ahead of" in page.inner_text("#maps") and page.locator("#maps .tag").inner_text() == "control"
    page.evaluate("document.getElementById('theme').click()")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_click_in_the_gallery_explains_it(page):
    before = page.inner_text("#predictions")
    page.locator(".thumb").nth(3).click()
    page.wait_for_selector("#grid[aria-busy=true]")
    page.wait_for_selector(DONE)
    assert page.inner_text("#predictions") != before and "gallery=3" in page.url


def test_a_file_a_class_and_a_bad_file(page, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    page.set_input_files("#file", tmp_path / "mine.png")
    page.wait_for_selector("#grid[aria-busy=true]")
    page.wait_for_selector(DONE)
    assert "gallery" not in page.url
    page.select_option("#target", "heart")
    page.wait_for_selector("#grid[aria-busy=true]")
    page.wait_for_selector(DONE)
    assert "explained: heart" in page.inner_text("#predictions")
    (tmp_path / "bad.jpg").write_bytes(b"<html>no picture</html>")
    page.set_input_files("#file", tmp_path / "bad.jpg")
    page.wait_for_selector("#alert:visible")
    assert "web page" in page.inner_text("#alert") and len(page.inner_text("#alert")) <= 200


def test_a_dropped_file(page):
    file = io.BytesIO()
    Image.new("RGB", (60, 60), "teal").save(file, "PNG")
    page.evaluate(
        """(bytes) => { const data = new DataTransfer(); data.items.add(new File([new Uint8Array(bytes)], "<script>x.png", { type: "image/png" }));
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })); }""",
        list(file.getvalue()),
    )
    page.wait_for_selector("#grid[aria-busy=true]")
    page.wait_for_selector(DONE)
    assert "<script>x.png" in page.get_attribute("#picture", "aria-label") and page.locator("script").count() == 1


def test_occluding_moves_predictions_and_maps(page):
    before = page.inner_text("#predictions")
    page.click("#occlude")
    box = page.locator("#picture").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.5)
    page.mouse.down()
    for part in (0.4, 0.5, 0.6, 0.7):
        page.mouse.move(box["x"] + box["width"] * part, box["y"] + box["height"] * 0.5)
    page.mouse.up()
    page.wait_for_selector("#grid[aria-busy=true]")
    page.wait_for_selector(DONE)
    assert page.inner_text("#predictions") != before
    page.click("#clear")
    page.wait_for_selector("#grid[aria-busy=true]")
    page.wait_for_selector(DONE)
    assert page.inner_text("#predictions") == before


def test_the_keyboard_alone(page):
    canvas = page.locator("#maps canvas").first
    canvas.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    values = page.locator("#maps .value").all_inner_texts()
    assert len(values) == 6 and all(text.startswith("pixel 25, 25: ") for text in values)
    assert page.locator(".mark:visible").count() == 6
    page.keyboard.press("Escape")
    assert page.locator(".mark:visible").count() == 0
    page.focus("#occlude")
    page.keyboard.press("Enter")
    page.focus("#picture")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Space")
    page.wait_for_selector("#grid[aria-busy=true]")
    page.wait_for_selector(DONE)
    assert page.locator("#clear:enabled").count() == 1


def test_stopping_and_going_on(page):
    page.evaluate("for (const box of document.querySelectorAll('input[name=method]')) box.checked = true")
    page.click("#run")
    page.wait_for_selector("#stop:enabled")
    page.click("#stop")
    page.wait_for_selector("#grid[aria-busy=false]")
    assert page.inner_text("#status") == "Stopped."
    page.evaluate(
        "for (const box of document.querySelectorAll('input[name=method]')) box.checked = box.value === 'saliency'"
    )
    page.click("#run")
    page.wait_for_selector(DONE)
    assert page.locator("#maps canvas:visible").count() == 2


@pytest.mark.parametrize("kind", ["png", "npz", "json", "html"])
def test_downloads(page, kind, tmp_path):
    with page.expect_download() as waiting:
        page.click(f"[data-as={kind}]")
    path = tmp_path / "file"
    waiting.value.save_as(path)
    if kind == "png":
        assert Image.open(path).size == (150 + 2 * 200, 34 + 3 * 200)
    elif kind == "npz":
        assert set(np.load(path).files) == {
            f"{n}/{m}" for n in ("resnet", "sde") for m in ("gradcam", "saliency", "random_map")
        }
    elif kind == "json":
        assert json.loads(path.read_text())["view"]["methods"] == "gradcam,random_map,saliency"
    else:
        assert path.read_text().startswith("<!doctype html>")


UNNAMED = """() => [...document.querySelectorAll("button, input, select, canvas[tabindex], a")]
  .filter((e) => !(e.textContent || e.labels?.[0]?.textContent || e.getAttribute("aria-label") || e.title || "").trim())
  .map((e) => e.outerHTML.slice(0, 90))"""
PALE = """() => {
  const light = (color) => {
    const parts = color.match(/[0-9.]+/g).slice(0, 3).map((x) => x / 255).map((x) => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const paper = (e) => {
    for (; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)|transparent/.test(color)) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const pale = [];
  for (const e of document.querySelectorAll("p, span, button, label, th, dd, h1, h2, small, div.said")) {
    if (!e.innerText?.trim() || e.disabled || !e.offsetParent) continue;
    const a = light(getComputedStyle(e).color), b = light(paper(e)), ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) pale.push([e.outerHTML.slice(0, 80), ratio]);
  }
  return pale;
}"""


def test_what_a_screen_reader_and_weak_eyes_need(page):
    assert page.evaluate(UNNAMED) == []
    assert page.evaluate("document.documentElement.lang") == "en" and page.locator("h1").count() == 1
    for _ in range(2):  # both themes; a contrast of 4.5 as WCAG 2.2 asks for
        assert page.evaluate(PALE) == []
        page.click("#theme")


def test_the_page_is_small():
    assert sum(path.stat().st_size for path in STATIC.iterdir()) <= 150 << 10
    assert "http://" not in (STATIC / "app.js").read_text().replace("http://www.w3.org/2000/svg", "")
