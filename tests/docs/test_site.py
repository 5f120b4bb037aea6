"""The site: it builds strictly, its links and anchors exist, it reads and searches in a browser without a network."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

pytest.importorskip("mkdocs", reason="needs mkdocs: pip install fastdiff-ddpm[docs]")

import fastdiff as fd

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUESTIONS = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
# What a link leads to outside of the site.
OUTSIDE = ("http", "https", "mailto", "data")


@pytest.fixture(scope="session")
def site(tmp_path_factory, worker_id):
    """The built site, built once for all processes of the tests."""
    shared = tmp_path_factory.getbasetemp() if worker_id == "master" else tmp_path_factory.getbasetemp().parent
    folder = shared / "site"
    with (shared / "site.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "site.built").is_file():
            command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
            environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1"}
            built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
            assert built.returncode == 0, built.stdout + built.stderr
            (shared / "site.built").touch()
    return folder


class Page(HTMLParser):
    """The links, sources, ids and text of a page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.ids, self.words, self.skipped = [], set(), [], 0
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.skipped += tag in ("script", "style")
        self.links += [found[name] for name in ("href", "src") if found.get(name)]
        self.ids |= {found[name] for name in ("id", "name") if found.get(name)}

    def handle_endtag(self, tag):
        self.skipped -= tag in ("script", "style")

    def handle_data(self, data):
        if not self.skipped:
            self.words.append(data)


@pytest.fixture(scope="module")
def pages(site):
    return {path.relative_to(site).as_posix(): Page(path) for path in sorted(site.rglob("*.html"))}


def test_links_lead_somewhere(site, pages):
    broken, theirs = [], set()
    for name, page in pages.items():
        # The page for what is not found has absolute links.
        if name == "404.html":
            continue
        for link in page.links:
            parts = urlsplit(urljoin(f"file:///{name}", link))
            if parts.scheme in OUTSIDE:
                theirs.add(link)
                continue
            target, anchor = unquote(parts.path).lstrip("/"), unquote(parts.fragment)
            # "__" begins what the theme's script makes.
            known = pages[target].ids if target in pages and not anchor.startswith("__") else {anchor}
            if not (site / target).is_file() or (anchor and anchor not in known):
                broken.append(f"{name}: {link}")
    assert not broken
    assert not [link for link in theirs if re.search(r"fonts\.g|cdn|unpkg|\.js$|\.css$", link)], theirs


def test_reference_has_every_public_name(pages):
    headings = " ".join(page.text for name, page in pages.items() if name.startswith("reference/"))
    from inspect import ismodule

    missing = [name for name in fd.__all__ if not name.startswith("_") and not ismodule(getattr(fd, name))]
    missing = [name for name in missing if f"fd.{name}" not in headings]
    missing += [name for name in fd.samplers.names() if f"fd.samplers.{name}" not in headings]
    assert not missing


def test_reference_has_every_command(pages):
    from typer.main import get_command

    from fastdiff.cli.app import app

    text = pages["reference/commands.html"].text
    for name, command in get_command(app).commands.items():
        inner = getattr(command, "commands", None)
        words = [f"fastdiff {name} {one}" for one in inner] if inner else [f"fastdiff {name}"]
        assert all(word in text for word in words)


def questions():
    """Each question with the pages that its answer links to and the words that they must have."""
    found = re.findall(r"^\d+\. \*\*(.*?)\*\*(.*?)<!-- answer: (.*?) -->", QUESTIONS, re.MULTILINE | re.DOTALL)
    return [(question, re.findall(r"\]\(([^)]+)\)", answer), words.split("; ")) for question, answer, words in found]


def test_there_are_ten_questions():
    assert len(questions()) == 10


@pytest.mark.parametrize(("question", "links", "words"), questions(), ids=lambda value: str(value)[:40])
def test_question_is_answered_by_its_pages(pages, question, links, words):
    text = ""
    for link in links:
        name, _, anchor = link.partition("#")
        page = pages[name.removeprefix("../").lower().replace(".md", ".html")]
        assert not anchor or anchor in page.ids
        text += page.text
    assert all(word in text for word in words), [word for word in words if word not in text]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs Playwright: pip install fastdiff-ddpm[browser]"
    )
    if CHROMIUM is None:
        pytest.skip("needs Chromium on the PATH: apt-get install chromium")
    with playwright.sync_playwright() as running:
        one = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        one.close()


# One of each kind: front, long tables, pictures, drawings, generated reference.
LOOKED_AT = (
    "index",
    "faq",
    "samplers",
    "benchmarks",
    "how-it-works",
    "examples/edit",
    "training",
    "reference/samplers",
)


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1440, "dark")])
def test_pages_read_in_a_browser(site, browser, width, scheme):
    said = []
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request", lambda request: said.append(request.url) if not request.url.startswith(("file:", "data:")) else None
    )
    page.on("requestfailed", lambda request: said.append(f"failed: {request.url}"))
    for name in LOOKED_AT:
        page.goto((site / f"{name}.html").as_uri())
        assert page.locator("h1").count() == 1, name
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} scrolls sideways"
        broken = "[...document.images].filter((one) => one.complete && !one.naturalWidth).map((one) => one.src)"
        assert page.evaluate(broken) == [], name
    page.close()
    assert said == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_have_no_serious_fault_of_accessibility(site, browser, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe: fastdiff-ddpm[browser]").Axe()
    page = browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme=scheme)
    for name in ("index", "examples/edit", "reference/editing"):
        page.goto((site / f"{name}.html").as_uri())
        # The theme's script names what has none.
        page.wait_for_selector('[role="dialog"][aria-label="Search"]', state="attached")
        found = axe.run(page).response["violations"]
        assert not [
            (one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")
        ], name
    page.close()


@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("RePaint", "samplers"),
        ("which sampler steps", "which-sampler"),
        ("fill hole known pixels", "editing"),
        ("machine died job", "faq"),
        ("safe checkpoint downloaded", "faq"),
        ("folder classes train", "own-images"),
        ("fewer evaluations bits/dim", "likelihood"),
    ],
)
def test_search_finds(site, browser, words, page):
    tab = browser.new_page(viewport={"width": 1440, "height": 900})
    tab.goto((site / "index.html").as_uri())
    tab.locator("input.md-search__input").click()
    tab.keyboard.type(words, delay=5)
    tab.locator(".md-search-result__item a").first.wait_for(timeout=20_000)
    # Results come while one types.
    wanted = f".md-search-result__item a[href*='{page}.html']"
    tab.locator(wanted).first.wait_for(state="attached", timeout=20_000)
    tab.close()
