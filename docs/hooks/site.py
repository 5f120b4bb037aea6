"""What mkdocs does not do by itself: pages from outside of docs/, the reference, and links between the two."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))

import examples  # noqa: E402
import reference  # noqa: E402

# Files of the repository that are pages, and where.
OUTSIDE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CITATION.cff": "assets/CITATION.cff",
    "LICENSE": "assets/LICENSE.txt",
}
# How much a page's words count in the search, by what its path begins with.
SEARCH_WEIGHTS = {"changelog": 0.1, "results/": 0.1, "reference/": 0.5, "contributing": 0.5, "versions": 0.5}
SEARCH_WEIGHTS |= {"questions": 6, "design": 2, "performance": 1}
GUIDE_WEIGHT = 4
# A script of the examples is a page, where another page leads to it.
EXAMPLE_PAGES = {f"docs/examples/{name}.py": f"examples/{name}.md" for name in examples.SCRIPTS}


def outside() -> dict[str, str]:
    """Path in the repository to path on the site, of all that lies outside of docs/."""
    found = dict(OUTSIDE)
    for path in sorted((ROOT / "bench" / "results").glob("*.*")):
        found[f"bench/results/{path.name}"] = f"results/{path.name}"
    return found


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside, the reference and the examples' pages."""
    for source, place in outside().items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    for place, text in (reference.pages() | examples.pages()).items():
        files.append(File.generated(config, place, content=text))
    return files


def label(words: str, path: str) -> str:
    """A page's title where a link is called by its file; other words as they are."""
    if not path.endswith(".md") or posixpath.basename(words.strip("`")) != posixpath.basename(path):
        return words
    source = ROOT / path
    title = re.match(r"# (.+)\n", source.read_text(encoding="utf-8")) if source.is_file() else None
    return title[1] if title else words


def relinked(text: str, place: str) -> str:
    """The text of the page at `place` of the site, with its links as they are there.

    Links are written for the repository's tree, where they work as well. Code blocks stay as they are.
    """
    places = outside()
    sources = {there: here for here, there in places.items()}
    home = sources.get(place, f"docs/{place}")

    def link(match: re.Match[str]) -> str:
        mark, words, target, anchor = match[1], match[2], match[3], match[4] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(home), target))
        there = places.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if path == "README.md":
            there = "index.md"
        if path in EXAMPLE_PAGES and place not in EXAMPLE_PAGES.values():
            there = EXAMPLE_PAGES[path]
        if (ROOT / path).is_dir():
            there = f"{there}/index.md"
        if there is None:
            # A file of the repository that the site has not: its name alone.
            return words if (ROOT / path).is_file() else match[0]
        return f"{mark}[{label(words, path)}]({posixpath.relpath(there, posixpath.dirname(place) or '.')}{anchor})"

    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"(!?)\[([^][]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)", link, parts[i])
    return "".join(parts)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as they are on the site; without comments, in which the tests find their set-up."""
    place = page.file.src_uri
    text = relinked(markdown, place)
    # Guides are what is searched for; lists that have every word come after them.
    weights = [weight for start, weight in SEARCH_WEIGHTS.items() if place.startswith(start)]
    page.meta["search"] = {"boost": weights[0] if weights else GUIDE_WEIGHT}
    return re.sub(r"^ *<!--.*?-->\n", "", text, flags=re.MULTILINE | re.DOTALL)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Papers' numbers as links, but in code and in links."""
    inside, parts = 0, re.split(r"(<[^>]+>)", html)
    for i, part in enumerate(parts):
        if re.match(r"</?(?:a|code|pre)\b", part):
            inside += -1 if part.startswith("</") else 1
        elif not inside and not part.startswith("<"):
            parts[i] = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r'<a href="https://arxiv.org/abs/\1">\g<0></a>', part)
    return "".join(parts)


def on_post_build(config: Any) -> None:
    """Take the sitemap away: it needs the site's address, and is empty without."""
    for name in ("sitemap.xml", "sitemap.xml.gz"):
        (Path(config["site_dir"]) / name).unlink(missing_ok=True)
