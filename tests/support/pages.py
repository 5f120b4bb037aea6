"""The code of the documentation's pages: found, with what its comments say of it, and run in the order of the page.

What a reader does not see stands in a comment right before a block:

    <!-- tests: set-up          Python, run before the block, in the names that the page's Python shares
    CODE -->
    <!-- tests: OLD -> NEW; OLD -> NEW -->       the block is run with these words changed: less work, another port
    <!-- tests: says            Python that raises or warns, or a command that fails, with this block's text
    CODE -->
    <!-- tests: not run: REASON -->
    <!-- tests: run by tests/docs/test_migration.py -->
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from fastdiff.cli.app import app
from support.command_line import SMALL_UNET, small_model, train_options, works
from support.pictures import picture, save

ROOT = Path(__file__).parents[2]
SHELL = ("bash", "sh", "console")
RUN = ("python", *SHELL)
# Of a block that is run, and of a server until it answers.
SECONDS = 120


def pages() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass
class Block:
    """A fenced block: its language, its code, the line that it begins at, and what comments say of it."""

    language: str
    code: str
    line: int
    set_up: list[str] = field(default_factory=list)
    changes: list[tuple[str, str]] = field(default_factory=list)
    says: str | None = None
    reason: str | None = None
    elsewhere: str | None = None

    @property
    def is_run(self) -> bool:
        return self.language in RUN and self.reason is None and self.elsewhere is None

    def changed(self) -> str:
        """The code as the tests run it. Raises ValueError where a change changes nothing."""
        code = self.code
        for old, new in self.changes:
            if old not in code:
                raise ValueError(f"line {self.line}: there is no {old!r} to be changed")
            code = code.replace(old, new)
        return code


def blocks(text: str) -> list[Block]:
    """All fenced blocks of a page, with the comments before each."""
    found: list[Block] = []
    waiting = Block("", "", 0)
    pattern = r"^<!-- tests: (?P<note>.*?) ?-->$|^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^ *```$"
    for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        if match["note"] is not None:
            note(waiting, match["note"])
            continue
        waiting.language, waiting.line = match["language"], text[: match.start()].count("\n") + 1
        indent = len(match["indent"])
        waiting.code = "".join(line[indent:] for line in match["code"].splitlines(keepends=True))
        found.append(waiting)
        waiting = Block("", "", 0)
    return found


def note(block: Block, text: str) -> None:
    kind, _, rest = text.partition("\n")
    if kind == "set-up":
        block.set_up.append(rest)
    elif kind == "says":
        block.says = rest
    elif text.startswith("not run: "):
        block.reason = " ".join(text.removeprefix("not run: ").split())
    elif text.startswith("run by "):
        block.elsewhere = text.removeprefix("run by ")
    elif " -> " in text:
        pairs = (change.strip().partition(" -> ") for change in text.split("; "))
        block.changes += [(old, new) for old, _, new in pairs]
    else:
        raise ValueError(f"expected set-up, says, not run, run by or changes, got {text!r}")


def joined(code: str) -> list[str]:
    """The lines of a shell's block, without prompts, comments, and what a console prints."""
    lines = code.replace("\\\n", " ").splitlines()
    if any(line.startswith("$ ") for line in lines):
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [line for line in lines if line.strip() and not line.startswith("#")]


class PageRun:
    """Runs a page's blocks in a folder, which is the working directory, and stops what it started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[str, Any] = {"__name__": "page"}
        self.servers: list[subprocess.Popen[bytes]] = []
        command = folder / ".bin" / "fastdiff"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fastdiff "$@"\n')
        command.chmod(0o755)
        scripts = Path(sys.executable).parent
        path = f"{command.parent}:{scripts}:{os.environ['PATH']}"
        self.environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def run(self, block: Block) -> None:
        """Run a block, or only its set-up where it is not to be run."""
        for code in block.set_up:
            exec(code, self.names)
        if block.says is not None:
            said = self.message(block.says)
            assert " ".join(block.code.split()) in said, f"line {block.line} of the page: got {said!r}"
        elif not block.is_run:
            return
        elif block.language == "python":
            exec(compile(block.changed(), f"<line {block.line} of the page>", "exec"), self.names)
        else:
            self.shell(joined(block.changed()), block.line)

    def message(self, code: str) -> str:
        """What is said where something fails or is not as it should be: by an exception, a command, a warning."""
        code = code.strip()
        if code.startswith("fastdiff "):
            result = CliRunner().invoke(app, shlex.split(code)[1:])
            assert result.exit_code != 0, f"{code} works"
            return " ".join(result.output.split())
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                exec(code, self.names)
            except Exception as error:
                return " ".join(str(error).split())
        assert warned, f"nothing is said by {code}"
        return " ".join(" ".join(str(one.message) for one in warned).split())

    def shell(self, lines: list[str], line_of_page: int) -> None:
        """Run lines one by one: plain ones of fastdiff in this process, servers until the page ends, others by bash."""
        waiting: list[str] = []
        for line in [re.sub(r"^\.venv/bin/", "", line) for line in lines]:
            if not re.match(r"fastdiff [^|&;>]*$", line):
                waiting.append(line)
                continue
            self.bash(waiting, line_of_page)
            waiting = []
            words = shlex.split(line, comments=True)[1:]
            if words[0] == "serve":
                self.serve(words)
                continue
            result = CliRunner().invoke(app, shorter(words))
            assert result.exit_code == 0, f"line {line_of_page} of the page: {line}\n{result.output}"
        self.bash(waiting, line_of_page)

    def bash(self, lines: list[str], line_of_page: int) -> None:
        if not lines:
            return
        script = "set -e\n" + "\n".join(lines)
        done = subprocess.run(
            ["bash", "-c", script], env=self.environment, timeout=SECONDS, capture_output=True, text=True
        )
        assert done.returncode == 0, f"line {line_of_page} of the page: {script}\n{done.stdout}{done.stderr}"

    def serve(self, words: list[str]) -> None:
        """Start a server and wait until it is ready."""
        port = int(words[words.index("--port") + 1])
        log = (self.folder / ".serve.log").open("wb")
        command = [sys.executable, "-m", "fastdiff", *words]
        self.servers.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5)
                return
            assert self.servers[-1].poll() is None, (self.folder / ".serve.log").read_text()
            time.sleep(0.1)
        raise AssertionError("the server is not ready")

    def close(self) -> None:
        for server in self.servers:
            server.send_signal(signal.SIGTERM)
        for server in self.servers:
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def digits_model(folder: str = "out/demo", num_classes: int | None = None, timesteps: int = 100) -> Path:
    """A model of the digits' size and grey values, with random weights."""
    kind = {"size": 8, "channels": 1, "scaling": 17, "num_classes": num_classes, "timesteps": timesteps}
    return Path(small_model(Path(folder), **kind))


def picture_folder(folder: str = "path/to/images", num: int = 6, size: int = 40) -> Path:
    """A folder of random pictures in two classes, cat and dog."""
    for i in range(num):
        save(Path(folder) / ("cat", "dog")[i % 2] / f"{i}.png", picture(size, size))
    return Path(folder)


def run_with_averages(folder: str) -> None:
    """A short training that keeps two averages, and snapshots for others."""
    averages = ("--ema-decay", 0.9999, "--ema-decay", 0.999, "--set", "train.snapshot_every=1")
    works(*train_options(folder, *averages))


def shorter(words: list[str]) -> list[str]:
    """A training of two steps of four images of a tiny network, looked at by nobody; any other command as it is."""
    if words[0] != "train" or "--print-config" in words:
        return words
    words = [*words, "--steps", "2"]
    if "--data" in words:
        words += ["--batch-size", "4", "--picture-every", "0", "--evaluate-every", "0"]
        sizes = [
            f"unet.{name}={list(value) if isinstance(value, tuple) else value}" for name, value in SMALL_UNET.items()
        ]
        for setting in (*sizes, "unet.attention_resolutions=[]", "train.warmup_steps=0"):
            words += ["--set", setting]
    return words
