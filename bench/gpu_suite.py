"""Everything about fastdiff on a GPU, in one command and under eight minutes, from a bare checkout:

    python bench/gpu_suite.py [--only kernels-bf16,loop] [--out FOLDER/NAME] [--list]

Needs PyTorch 2.10 or newer with a GPU and Triton; nvcc for the sampling loop as one launch, pytest for the tests.
Nothing is installed. This process never touches the GPU: each section (`--list`) is a process of its own, killed with
all that it started at its limit. It writes its rows one by one, so that whatever happens to it costs its own remaining
rows only.

Results: NAME.jsonl (a line per row, as they come), NAME.md (rewritten after each section) and NAME.log, in the folder
$OUT where that is set, else in bench/results. Commit them unedited. The exit status is 0 where every gate and test was
passed and every section came to its end.

`--dry-run` goes the same way with stand-ins for the sections, in seconds and without torch; `--device cpu --quick` runs
their real code in small shapes on the CPU. The times of neither mean anything.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gpu_machine
import gpu_process
import gpu_records
import gpu_report
import gpu_sections
from gpu_sections import NAMES, ROOT, SECTIONS, Section
from gpu_stand_ins import FAULTS, HANGING

RESULTS = ROOT / "bench" / "results"
LOG_LINES = 25
# What remains of the log of a section, so that all files together stay small.
LOG_BYTES = 2 << 20


class Suite:
    """A run of sections, and its files."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.started = time.monotonic()
        self.records, self.report, self.log = (options.out.with_name(options.out.name + s) for s in SUFFIXES)
        self.watch = None if options.is_dry else gpu_machine.ClockWatch()
        options.out.parent.mkdir(parents=True, exist_ok=True)
        for path in (self.records, self.report, self.log):
            path.write_bytes(b"")

    @property
    def stretch(self) -> float:
        """Alone a section finds nothing compiled by those before it, and may take up to twice its time."""
        chosen = [section.seconds for section in SECTIONS if section.name in (self.options.only or ())]
        return max(1.0, min(2.0, self.options.budget / sum(chosen))) if sum(chosen) else 1.0

    @property
    def left(self) -> float:
        """Seconds of the whole run."""
        return self.options.budget - (time.monotonic() - self.started)

    def run(self, sections: list[Section]) -> bool:
        """Run sections; whether all was as it should be."""
        machine = gpu_machine.about(self.options.is_dry) | {"kind": self.options.kind, "only": self.options.only}
        gpu_records.append(self.records, {"machine": machine})
        try:
            for section in sections:
                try:
                    found = self._run(section)
                except OSError as error:
                    # No process, no file: the next may be luckier.
                    found = {"status": f"died, not begun: {error}", "seconds": 0, "limit": 0}
                self._end(section, **found)
        finally:
            # Whoever interrupts the run finds what there is.
            self._write_report()
            if self.watch is not None:
                self.watch.close()
        return not gpu_records.bad_sections(gpu_records.read(self.records))

    def verdict(self) -> str:
        """Which sections were not as they should be: the last line, for who sees the end only."""
        return gpu_report.verdict(gpu_records.read(self.records))

    def _limit(self, section: Section) -> float:
        """Seconds that a section may take; 0 where it is not begun."""
        options = self.options
        if options.dry_run:
            hangs = dict(options.fault).get(section.name) in HANGING
            return min(gpu_sections.DRY_SECONDS_TO_HANG if hangs else gpu_sections.DRY_SECONDS, self.left)
        if options.is_dry:
            return min(gpu_sections.QUICK_SECONDS, self.left)
        if section.grows:
            return self.left if self.left >= gpu_sections.LEAST_SECONDS_TO_GROW else 0
        limit = min(section.seconds * self.stretch, self.left)
        return limit if limit >= min(section.seconds, gpu_sections.LEAST_SECONDS) else 0

    def _run(self, section: Section) -> dict[str, Any]:
        """Run a section; its status, and what else its record says."""
        limit = self._limit(section)
        if limit <= 0:
            return {"status": f"not run: {max(0, self.left):.0f} s were left", "seconds": 0, "limit": 0}
        before = self.log.stat().st_size
        with self.log.open("ab", buffering=0) as log:
            log.write(f"\n== {section.name}, at most {limit:.0f} s\n".encode())
            ending = gpu_process.run_limited(self._command(section, limit), limit, log, os.environ)
        keep = () if self.watch is None else (self.watch.number,)
        orphans = gpu_process.end_orphans(keep)
        gpu_records.mend(self.records)
        records = gpu_records.read(self.records)
        rows = gpu_records.rows_of(records, section.name)
        last = next((r for r in records if r.get("section") == section.name and r.get("end")), None)
        wrong = ending.in_words()
        if wrong is None and last is None:
            wrong = "died with exit status 0, before its end"
        if wrong is None and last is not None and last["error"] is not None:
            wrong = f"raised {last['error']}"
        found: dict[str, Any] = {"status": wrong or f"done: {gpu_records.count(rows)}"}
        found |= {"seconds": round(ending.seconds, 1), "limit": limit}
        if wrong is not None:
            found |= {"at": gpu_records.begun_last(records, section.name), "log": self._last_words(before)}
        if orphans:
            found["killed_afterwards"] = orphans
        if self.watch is not None:
            found["clocks"] = self.watch.since_last()
        return found

    def _command(self, section: Section, limit: float) -> list[str]:
        options = self.options
        script = str(Path(__file__).with_name("gpu_section.py"))
        command = [sys.executable, "-u", script, section.name, "--records", str(self.records.resolve())]
        command += ["--seconds", str(limit), "--device", options.device]
        command += ["--quick"] * options.quick + ["--dry-run"] * options.dry_run + ["--cold"] * bool(options.only)
        if fault := dict(options.fault).get(section.name):
            command += ["--fault", fault]
        return command

    def _last_words(self, since: int) -> str:
        with self.log.open("rb") as file:
            file.seek(max(since, self.log.stat().st_size - 65536))
            lines = file.read().decode(errors="replace").splitlines()
        return "\n".join(line[:300] for line in lines[-LOG_LINES:])

    def _end(self, section: Section, **found: Any) -> None:
        record = {"ended": section.name, "may_be_cut_off": section.grows, **found}
        gpu_records.append(self.records, record)
        if self.log.stat().st_size > LOG_BYTES:
            self._shorten_log()
        self._write_report()
        print(f"{section.name}: {found['status']}, {found['seconds']} s", flush=True)

    def _shorten_log(self) -> None:
        text = self.log.read_bytes()
        half = LOG_BYTES // 2
        self.log.write_bytes(text[:half] + b"\n... left out ...\n" + text[-half // 2 :])

    def _write_report(self) -> None:
        text = gpu_report.to_markdown(gpu_records.read(self.records))
        new = self.report.with_name(self.report.name + ".new")
        new.write_text(text)
        new.replace(self.report)


SUFFIXES = (".jsonl", ".md", ".log")


def main() -> int:
    """Run the sections."""
    options = parse()
    if options.list:
        for section in SECTIONS:
            seconds = f"{section.seconds} s" if section.seconds else "what is left"
            print(f"{section.name:16} {seconds:12} {section.about}")
        return 0
    # `timeout` and a session's end are like Ctrl-C: the running section is ended, and the report written.
    signal.signal(signal.SIGTERM, _interrupt)
    gpu_process.adopt_orphans()
    suite = Suite(options)
    try:
        good = suite.run([section for section in SECTIONS if section.name in (options.only or NAMES)])
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        return 130
    finally:
        print(f"\n{suite.report.read_text()}\n{suite.records}, {suite.report}\n{suite.verdict()}", flush=True)
    return 0 if good else 1


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def parse() -> argparse.Namespace:
    """The command line, with the place of the results settled."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="extend", type=_names, metavar="A,B", help="these sections")
    parser.add_argument("--list", action="store_true", help="print the sections")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny shapes and few rounds, to see that it runs")
    parser.add_argument("--dry-run", action="store_true", help="stand-ins for the sections, without GPU or torch")
    parser.add_argument(
        "--fault", action="append", type=_fault, default=[], metavar="SECTION=KIND",
        help=f"of a dry run, what goes wrong: {', '.join(FAULTS)}",
    )  # fmt: skip
    parser.add_argument("--budget", type=float, help=f"seconds in all (default {gpu_sections.BUDGET})")
    parser.add_argument("--out", type=Path, help="results, without suffix")
    options = parser.parse_args()
    options.is_dry = options.dry_run or options.device == "cpu"
    options.kind = "a dry run with stand-ins" if options.dry_run else "small shapes on the CPU"
    if options.fault and not options.dry_run:
        parser.error("--fault needs --dry-run")
    if options.device == "cpu" and not (options.quick or options.dry_run):
        parser.error("--device cpu needs --quick: the real shapes would take hours")
    if options.budget is None:
        options.budget = len(SECTIONS) * gpu_sections.QUICK_SECONDS if options.is_dry else gpu_sections.BUDGET
    name = None if options.is_dry or options.list else gpu_machine.card()
    if name is None and not options.is_dry and not options.list:
        parser.error(
            "nvidia-smi finds no GPU; `--device cpu --quick` shows whether the sections run, `--dry-run` the rest"
        )
    if options.out is None and not options.list:
        options.out = _place(name, options.only, options.quick)
    return options


def _place(card: str | None, only: list[str] | None, quick: bool) -> Path:
    """Where the results go when nobody says; a part's results stand beside those of all."""
    if card is None or quick:
        return Path(tempfile.mkdtemp(prefix="gpu_suite_")) / "dry"
    stem = re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
    folder = Path(os.environ["OUT"]) if os.environ.get("OUT") else RESULTS
    return folder / "_".join([f"gpu-{stem}", *sorted(only or [], key=NAMES.index)])


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in NAMES]:
        raise argparse.ArgumentTypeError(f"no section {', '.join(unknown)}; there are {', '.join(NAMES)}")
    return names


def _fault(text: str) -> tuple[str, str]:
    section, _, kind = text.partition("=")
    if section not in NAMES or kind not in FAULTS:
        raise argparse.ArgumentTypeError(f"expected SECTION=KIND with a kind of {', '.join(FAULTS)}, got {text}")
    return section, kind


if __name__ == "__main__":
    sys.exit(main())
