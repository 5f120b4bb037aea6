"""Pages of docs/examples/*.py: text where a script has text, code where it has code, and what it printed."""

from __future__ import annotations

import re
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
# In the order of the page that lists them.
SCRIPTS = ("train", "samplers", "likelihood", "edit", "own_sampler")


def page(script: str, printed: str, name: str) -> str:
    """A script in the percent format as a page, with what it printed at its end."""
    text = ""
    for cell in re.split(r"^# %%", script, flags=re.MULTILINE)[1:]:
        kind, _, body = cell.partition("\n")
        if "[markdown]" in kind:
            text += "\n".join(re.sub(r"^# ?", "", line) for line in body.strip().splitlines()) + "\n\n"
        else:
            text += f"```python\n{body.strip()}\n```\n\n"
    return (
        text
        + f"## What it prints\n\n```text\n{printed.strip()}\n```\n\nThe whole as one file: [{name}.py]({name}.py).\n"
    )


def pages() -> dict[str, str]:
    """Path on the site to text, of all examples and of the page that lists them."""
    found, rows = {}, ""
    for name in SCRIPTS:
        script = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
        printed = (EXAMPLES / f"{name}.txt").read_text(encoding="utf-8")
        found[f"examples/{name}.md"] = page(script, printed, name)
        title, first = re.findall(r"^# (?:# )?([^#%\n].*)$", script, re.MULTILINE)[:2]
        rows += f"- [{title}]({name}.md): {first}\n"
    found["examples/index.md"] = (
        "# Examples\n\nFive scripts on handwritten digits, each with its pictures and what it printed. They run with "
        "the model "
        "of `make demo` in `out/demo`, but for the first, which trains its own; `make examples` runs them all, and "
        "the tests run "
        "them with short settings.\n\n" + rows
    )
    return found
