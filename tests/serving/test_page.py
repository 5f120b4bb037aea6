"""The page, in a headless Chromium, against a real server."""

import base64
import io
import json
import re
import shutil
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

import fastdiff as fd
from fastdiff.files.images import to_uint8
from support.networks import random_unet, two_levels

pytest.importorskip("fastapi", reason="needs FastAPI: pip install fastdiff-ddpm[serve]")
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install fastdiff-ddpm[browser]")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH: apt-get install chromium")
expect = playwright.expect
expect.set_options(timeout=20_000)

from fastdiff.serving import Engine  # noqa: E402
from fastdiff.serving.http.settings import Settings  # noqa: E402
from support.servers import served  # noqa: E402

PAGE = Path(fd.__file__).parent / "serving" / "page"
NAMES = ("cat", "dog", "owl")
FRAME = "#editor .frame canvas"
# Outlines of what has the focus and of what stands after it, which is how a radio button shows it.
OUTLINES = (
    "[document.activeElement, document.activeElement.nextElementSibling ?? document.body]"
    ".map((one) => getComputedStyle(one).outlineStyle)"
)
# What a finger needs, in CSS pixels (WCAG 2.5.5).
TOUCH_TARGET = 44


@pytest.fixture(scope="module")
def pipeline():
    """Images of 8x8 pixels in three classes with names and a null class, 1000 timesteps."""
    unet = random_unet(two_levels(num_classes=4))
    diffusion = fd.Diffusion(fd.NoiseSchedule.cosine(1000))
    return fd.Pipeline(unet, diffusion, metadata={"data": {"classes": list(NAMES)}})


class Slow(Engine):
    """An engine that sleeps before each evaluation."""

    def step(self):
        time.sleep(0.005)
        return super().step()


def engine(pipeline, kind=Engine):
    return kind(pipeline, max_steps=1000, max_num=16)


@pytest.fixture(scope="module")
def server(pipeline):
    with served(engine(pipeline)) as server:
        yield server


@pytest.fixture(scope="module")
def slow_server(pipeline):
    with served(engine(pipeline, Slow), drain_seconds=0.1) as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """A function that opens an address in a context of its own; no page may throw, or ask another host."""
    faults, contexts = [], []

    def open(address, waits="#settings", **options):
        context = browser.new_context(**{"viewport": {"width": 1100, "height": 800}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: faults.append(f"thrown: {error}"))
        page.on("console", lambda line: "Content Security" in line.text and faults.append(line.text))
        host = urlsplit(address).netloc
        page.on("request", lambda request: urlsplit(request.url).netloc in (host, "") or faults.append(request.url))
        page.goto(address)
        if waits:
            page.wait_for_selector(waits)
        return page

    yield open
    for context in contexts:
        context.close()
    assert not faults


def sample(page, panel="#main-panel"):
    """Press the button of a form and wait for the pictures."""
    page.click("#settings .primary" if panel == "#main-panel" else "#edit .primary")
    return pictures(page, panel)


def pictures(page, panel="#main-panel"):
    """uint8 [n, H, W] of a panel, when all of them are done."""
    expect(page.locator(f"{panel} .note")).to_have_text(re.compile("pictures? in"))
    return decoded(page.eval_on_selector_all(f"{panel} .gallery img", "images => images.map(image => image.src)"))


def decoded(sources):
    return np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(text.split(",")[1])))) for text in sources])


def as_pictures(samples):
    return to_uint8(samples)[:, 0].numpy()


def fragment(**settings):
    return "#" + "&".join(f"{name}={value}" for name, value in {"sampler": "ddim", "steps": 5, **settings}.items())


def bodies(page):
    """The bodies that the page posts, from now on."""
    found = []
    page.on("request", lambda request: request.method == "POST" and found.append(json.loads(request.post_data)))
    return found


def edit(page, number, kind="vary"):
    page.click(f"#main-panel .gallery li:nth-child({number}) button")
    page.check(f"[value={kind}]")


def where(page, x, y):
    """A place on the picture in the editor, (0, 0) to (1, 1), on the screen."""
    box = page.locator(FRAME).bounding_box()
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def test_pictures_are_the_librarys_own(opened, server, pipeline):
    page = opened(server.url)
    page.fill("#num", "4")
    page.fill("#steps", "7")
    page.fill("#seed", "3")
    page.select_option("#label", label="1 · dog")
    samples = pipeline.sample(4, steps=7, seed=3, labels=["dog"] * 4)
    assert (sample(page) == as_pictures(samples)).all()
    assert page.locator(".gallery img").nth(2).get_attribute("alt") == "sample 3 of 4, seed 3, label dog"


def test_pictures_come_out_of_the_noise_live(opened, slow_server):
    page = opened(slow_server.url)
    page.evaluate("""() => {
        window.seen = new Set();
        const look = () => document.querySelectorAll("#main-panel img").forEach((image) => window.seen.add(image.src));
        new MutationObserver(look).observe(document.getElementById("main-panel"),
            {subtree: true, childList: true, attributeFilter: ["src"]});
    }""")
    posted = bodies(page)
    page.fill("#num", "1")
    page.fill("#steps", "100")
    sample(page)
    assert posted[0]["previews"] == 4
    # The noise, the picture, and at least a few of the previews between them: a reader that is late misses some.
    assert page.evaluate("window.seen.size") >= 5


def test_reduced_motion_asks_for_few_previews(opened, server):
    page = opened(server.url, reduced_motion="reduce")
    posted = bodies(page)
    page.fill("#steps", "30")
    sample(page)
    assert posted[0]["previews"] == 10


def test_cancel_ends_the_request_in_the_server(opened, slow_server):
    page = opened(slow_server.url)
    page.fill("#num", "16")
    page.fill("#steps", "1000")
    with page.expect_response(lambda response: response.request.method == "DELETE") as answer:
        page.focus("#settings .primary")
        page.keyboard.press("Enter")
        expect(page.locator("#main-panel progress")).to_have_attribute("value", re.compile("[1-9]"))
        page.click("#main-panel .cancel")
    assert answer.value.ok
    expect(page.locator("#main-panel .note")).to_have_text("Cancelled")
    expect(page.locator("#settings .primary")).to_be_focused()
    # The place is free again.
    page.fill("#steps", "2")
    sample(page)


def cancelled(server):
    with server.client() as client:
        return client.get("/v1/stats").json()["cancelled"]


def wait_until(holds, seconds=10):
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, "not in time"
        time.sleep(0.02)


def test_leaving_the_page_cancels(opened, slow_server):
    page = opened(slow_server.url)
    page.fill("#num", "16")
    page.fill("#steps", "1000")
    with page.expect_response("**/events"):
        page.click("#settings .primary")
    before = cancelled(slow_server)
    page.goto("about:blank")
    wait_until(lambda: cancelled(slow_server) == before + 1)


def test_link_shows_the_same_pictures_to_someone_else(opened, server):
    page = opened(server.url)
    page.fill("#num", "3")
    page.fill("#seed", "18446744073709551615")
    page.select_option("#label", "turn")
    page.fill("#guidance", "2.5")
    first = sample(page)
    edit(page, 2)
    page.fill("#strength", "0.4")
    varied = sample(page, "#edit-panel")
    page.click("#edit-panel .gallery li:nth-child(3) button")
    page.check("[value=fill]")
    page.click("#invert")
    page.mouse.click(*where(page, 0.9, 0.9))
    filled = sample(page, "#edit-panel")

    other = opened(page.url)
    expect(other.locator("#title")).to_have_text("Variation by 0.4, 3 of 4, seed 0")
    assert (pictures(other, "#edit-panel") == filled).all()
    other.click("#editor .back")
    assert (decoded(other.eval_on_selector_all("#edit-panel img", "all => all.map(one => one.src)")) == varied).all()
    other.click("#editor .close")
    assert (pictures(other) == first).all()
    # The editor is closed, and so the link is one to the samples again.
    expect(other).not_to_have_url(re.compile("edit="))


def test_back_returns_to_the_pictures_before(opened, server):
    page = opened(server.url)
    first = sample(page)
    page.fill("#seed", "5")
    assert (sample(page) != first).any()
    page.go_back()
    expect(page.locator("#seed")).to_have_value("0")
    expect(page.locator("#main-panel .gallery img").first).to_have_attribute("alt", re.compile("seed 0"))
    assert (pictures(page) == first).all()


def test_slider_varies_a_picture(opened, server):
    page = opened(server.url + "/" + fragment(num=2, label=2))
    original = pictures(page)
    edit(page, 2)
    slider = page.locator("#strength-range").bounding_box()
    posted = bodies(page)
    page.mouse.click(slider["x"] + 0.75 * slider["width"], slider["y"] + slider["height"] / 2)
    some = pictures(page, "#edit-panel")
    assert 0.6 <= posted[-1]["strength"] <= 0.9
    assert posted[-1]["labels"] == [2] * 4
    assert (some != original[1]).any(axis=(1, 2)).all()
    page.fill("#strength", "0")
    assert (sample(page, "#edit-panel") == original[1]).all()


def test_mask_is_painted_by_mouse_and_white_where_known(opened, server):
    page = opened(server.url + "/" + fragment(num=1, label=0))
    original = pictures(page)[0]
    edit(page, 1, "fill")
    page.fill("#brush", "1")
    page.mouse.move(*where(page, 0.5 / 8, 2.5 / 8))
    page.mouse.down()
    page.mouse.move(*where(page, 7.5 / 8, 2.5 / 8), steps=3)
    page.mouse.up()
    posted = bodies(page)
    filled = sample(page, "#edit-panel")
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(posted[-1]["mask"]))).convert("L"))
    wanted = np.full((8, 8), 255)
    wanted[2] = 0
    assert (mask == wanted).all()
    assert (filled[:, wanted == 255] == original[wanted == 255]).all()
    assert (filled[:, 2] != original[2]).any()


def painted(page):
    """bool [8, 8] of what is painted in the editor."""
    alpha = page.eval_on_selector(
        FRAME,
        "canvas => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"
        ".filter((_, i) => i % 4 === 3)",
    )
    return (np.array(alpha) > 0).reshape(8, 8)


def test_mask_is_painted_by_touch_and_taken_back(opened, server):
    page = opened(server.url + "/" + fragment(num=1, label=0), has_touch=True, viewport={"width": 360, "height": 740})
    pictures(page)
    edit(page, 1, "fill")
    page.fill("#brush", "1")
    page.locator(FRAME).scroll_into_view_if_needed()
    page.touchscreen.tap(*where(page, 3.5 / 8, 1.5 / 8))
    assert painted(page).nonzero() == (np.array([1]), np.array([3]))
    page.click("#invert")
    assert painted(page).sum() == 63
    page.click("#erase")
    page.touchscreen.tap(*where(page, 0.5 / 8, 0.5 / 8))
    assert painted(page).sum() == 62
    page.click("#clear")
    assert not painted(page).any()
    page.click("#edit .primary")
    expect(page.locator("#edit-panel .error")).to_have_text("Paint over a part of the picture first.")


def test_everything_is_done_by_keyboard_alone(opened, server):
    page = opened(server.url)

    def tab_to(selector):
        for _ in range(30):
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                assert "solid" in page.evaluate(OUTLINES), "the focus is seen"
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"no way to {selector} by Tab")

    tab_to("#num")
    page.keyboard.press("ArrowDown")
    tab_to("#settings .primary")
    page.keyboard.press("Enter")
    assert len(pictures(page)) == 3
    tab_to("#main-panel li:nth-child(2) button")
    page.keyboard.press("Enter")
    tab_to("[name=kind]")
    page.keyboard.press("ArrowRight")
    tab_to("#brush")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    tab_to(FRAME)
    for key in ("ArrowUp", "Space", "Shift+ArrowRight", "ArrowRight", "e", "Space"):
        page.keyboard.press(key)
    assert painted(page).nonzero()[1].tolist() == [4, 5]
    assert painted(page).nonzero()[0].tolist() == [3, 3]
    expect(page.locator("#cursor")).to_have_text("row 4, column 7, kept, erasing")
    tab_to("#edit .primary")
    page.keyboard.press("Enter")
    assert len(pictures(page, "#edit-panel")) == 4
    page.keyboard.press("Escape")
    expect(page.locator("#main-panel li:nth-child(2) button")).to_be_focused()


def test_picture_is_downloaded_as_it_is(opened, server):
    page = opened(server.url + "/" + fragment(num=2, label=1))
    whole = pictures(page)
    edit(page, 2)
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename.endswith("sample-2-of-2-seed-0-label-dog.png")
    assert (np.asarray(Image.open(download.value.path())) == whole[1]).all()


def test_refusal_is_the_servers_sentence(opened, server):
    page = opened(server.url + "/" + fragment(num=1, label=0, seed=2**64 + 5))
    alert = page.locator("#main-panel [role=alert]")
    expect(alert).to_contain_text("18446744073709551621")
    expect(alert).to_contain_text("seed")
    page.fill("#seed", "1")
    sample(page)
    expect(alert).to_be_empty()


def test_key_is_asked_for_and_kept_in_the_tab(opened, pipeline):
    with served(engine(pipeline), Settings(api_key="open sesame")) as server:
        page = opened(server.url, waits="#key-form")
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#main-panel .error")).to_contain_text("key")
        page.fill("#key", "open sesame")
        page.keyboard.press("Enter")
        page.wait_for_selector("#settings")
        sample(page)
        kept = page.evaluate("[localStorage.length, document.cookie, location.href.includes('sesame')]")
        assert kept == [0, "", False]
        page.reload()
        page.wait_for_selector("#settings")


def test_server_that_is_not_there_is_said_and_tried_again(opened, pipeline):
    with served(engine(pipeline)) as server:
        page = opened(server.url)
        page.fill("#steps", "2")
        before = sample(page)
        port = server.address[1]
    page.click("#settings .primary")
    said = re.compile("The server does not answer. Trying again in . s.")
    expect(page.locator("#main-panel .note")).to_have_text(said)
    with served(engine(pipeline), port=port):
        assert (pictures(page) == before).all()


def test_server_that_goes_away_in_the_middle_is_asked_again(opened, pipeline):
    with served(engine(pipeline, Slow), drain_seconds=0.1) as server:
        page = opened(server.url + "/" + fragment(num=16, steps=1000, label=1))
        expect(page.locator("#main-panel progress")).to_have_attribute("value", re.compile("[1-9]"))
        port = server.address[1]
    expect(page.locator("#main-panel .note")).to_contain_text("Trying again")
    with served(engine(pipeline, Slow), drain_seconds=0.1, port=port):
        expect(page.locator("#main-panel .note")).to_have_text("Sampling")
        page.click("#main-panel .cancel")
        expect(page.locator("#main-panel .note")).to_have_text("Cancelled")


def test_server_that_is_not_ready_is_waited_for(opened, server, browser):
    context = browser.new_context()
    page = context.new_page()
    page.route("**/ready", lambda route: route.fulfill(status=503, body="{}"), times=1)
    page.goto(server.url)
    expect(page.locator("#main-panel .note")).to_have_text("The server is not ready. Trying again in 1 s.")
    page.wait_for_selector("#settings")
    context.close()


def test_full_queue_is_waited_for(opened, server):
    page = opened(server.url)
    answer = {"status": 429, "headers": {"Retry-After": "1"}, "body": json.dumps({"detail": "the queue is full"})}
    page.route("**/v1/images*", lambda route: route.fulfill(**answer), times=1)
    page.click("#settings .primary")
    expect(page.locator("#main-panel .note")).to_have_text("the queue is full. Trying again in 1 s.")
    pictures(page)


def test_chart_is_drawn_and_an_idle_page_asks_nothing(opened, server):
    page = opened(server.url)
    page.fill("#steps", "20")
    sample(page)
    expect(page.locator("#load")).to_be_visible()
    expect(page.locator("#fill")).to_have_text(re.compile(r"\d+ %"))
    assert page.locator("#load path").get_attribute("d").startswith("M")
    # The last look at the chart comes within a second.
    expect(page.locator("#queue")).to_have_text("0 running, 0 waiting")
    page.wait_for_timeout(1500)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(2000)
    assert asked == []


def controls(page, root):
    """Names and sizes of what can be pressed below an element."""
    return page.eval_on_selector_all(
        f"{root} :is(button, a, select, input:not([type=radio]), .modes label)",
        "all => all.filter((one) => one.checkVisibility()).map((one) => {"
        "const box = one.getBoundingClientRect(); return [one.id || one.textContent, box.width, box.height]})",
    )


def test_phone_scrolls_one_way_and_has_room_for_fingers(opened, server):
    page = opened(server.url + "/" + fragment(num=4, label=0), has_touch=True, viewport={"width": 360, "height": 740})
    pictures(page)

    def check(root):
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.evaluate("document.getElementById('editor').scrollWidth") <= 360
        small = [one for one in controls(page, root) if min(one[1:]) < TOUCH_TARGET]
        assert not small

    check("body")
    edit(page, 1)
    sample(page, "#edit-panel")
    check("#editor")
    page.click("#edit-panel .gallery li:first-child button")
    page.check("[value=fill]")
    check("#editor")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility_rules_hold(opened, server, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra browser")
    page = opened(server.url + "/" + fragment(num=2, label=0), color_scheme=scheme)

    def check():
        found = axe.Axe().run(page).response["violations"]
        assert not [(one["id"], [node["html"] for node in one["nodes"]]) for one in found]

    pictures(page)
    check()
    edit(page, 1)
    sample(page, "#edit-panel")
    check()
    page.check("[value=fill]")
    check()


def test_page_is_small_and_has_nothing_inline():
    files = [path for path in PAGE.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40_000
    html = (PAGE / "index.html").read_text()
    assert not re.search(r"<style|<script(?![^>]*\ssrc=)|\son\w+=|\sstyle=", html)
    assert not [path.name for path in files if re.search(r"https?://(?!www\.w3\.org/2000/svg)", path.read_text())]
