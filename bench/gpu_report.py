"""The GPU suite's results as Markdown: what went wrong first, then a table per section."""

from __future__ import annotations

from typing import Any

import gpu_records
from gpu_sections import SECTIONS

Record = dict[str, Any]
FIGURES = {
    "gigabytes_per_second": ("GB/s", ".0f"),
    "fraction_of_copy": ("of copy", ".0%"),
    "teraflops": ("TFLOP/s", ".1f"),
    "fraction_of_floor": ("floor / time", ".0%"),
    "images_per_second": ("images/s", ".1f"),
}
# What of a row is shown in words behind its times.
NOTES = (
    "note",
    "predicted_us",
    "parts_us",
    "spread_us",
    "jitter_us",
    "difference_from_first_mode",
    "compile_seconds",
    "reason",
)
HEADS = ("what", "type", "gate", "us per arm: median (least)", "CPU us per call", "times faster than")
MOST_KERNELS = 25


def to_markdown(records: list[Record]) -> str:
    """The whole report, of a run that is over or still goes on."""
    machine = next((record["machine"] for record in records if "machine" in record), {})
    ends = {record["ended"]: record for record in records if "ended" in record}
    lines = [*_about(machine), "", *_overview(records, ends)]
    for section in SECTIONS:
        rows = gpu_records.rows_of(records, section.name)
        if section.name in ends or rows:
            try:
                lines += ["", *_section(section.name, section.about, rows, ends.get(section.name))]
            except Exception as error:
                # A row of another form must not cost the report of the others.
                lines += [
                    "",
                    f"## {section.name}",
                    "",
                    f"Cannot be shown ({type(error).__name__}: {error}); see the rows.",
                ]
    return "\n".join(lines) + "\n"


def verdict(records: list[Record]) -> str:
    """Which sections were not as they should be, in a sentence."""
    bad = gpu_records.bad_sections(records)
    return f"Not as it should be: {', '.join(bad)}." if bad else "All that was run was as it should be."


def _about(machine: Record) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items() if version)
    facts = ", ".join(f"{name} {value}" for name, value in machine.get("facts", {}).items())
    device = machine.get("device") or f"No GPU: {machine.get('kind', 'a dry run')}, its times mean nothing"
    lines = [
        f"# {device}",
        "",
        f"Commit {machine.get('commit')} (sources {machine.get('sources')}), {machine.get('date')}; {versions}.",
    ]
    if facts:
        lines += ["", f"{facts}."]
    return [
        *lines,
        "",
        "Times are medians of interleaved rounds, least in brackets. Kernels are timed by calls captured into a graph",
        "over buffers that are not in the cache, whole networks by calls one after the other; the CPU's part of a call",
        "is told apart. Ratios are the peer's median over fastdiff's. What failed its gate shows no figure.",
    ]


def _overview(records: list[Record], ends: dict[str, Record]) -> list[str]:
    lines = [*_table(("section", "end", "rows", "s", "of at most", "SM clock MHz, W"))]
    for name, end in ends.items():
        rows = gpu_records.rows_of(records, name)
        clocks = end.get("clocks", {})
        words = ", ".join("-".join(f"{v:.0f}" for v in clocks[k]) for k in ("clocks.sm", "power.draw") if k in clocks)
        lines.append(_cells(name, end["status"], gpu_records.count(rows), end["seconds"], f"{end['limit']:.0f}", words))
    return [*lines, "", verdict(records)]


def _section(name: str, about: str, rows: list[Record], end: Record | None) -> list[str]:
    status = "still running" if end is None else end["status"]
    lines = [f"## {name}: {status}", "", f"{about[0].upper()}{about[1:]}."]
    if end is not None and end.get("at"):
        lines += ["", f"It was at: {end['at']}. Its rows before that are below."]
    tests = [row for row in rows if row.get("kind") == "test"]
    splits = [row for row in rows if "kernels" in row]
    others = [row for row in rows if row not in tests and row not in splits]
    if tests:
        lines += ["", f"{gpu_records.count(tests)}."]
        lines += _listed(row for row in tests if row["gate"] != "passed")
    if others:
        used = [key for key in FIGURES if any(key in row for row in others)]
        lines += ["", *_table((*HEADS, *(FIGURES[key][0] for key in used), "notes"))]
        lines += [_line(row, used) for row in others]
        peers = dict.fromkeys(row["peer"] for row in others if "peer" in row)
        lines += ["", *(f"Peer: {peer}." for peer in peers)] if peers else []
    for row in splits:
        lines += ["", f"{row['name']}: {row['total_us']:.0f} us", "", *_table(("kernel", "calls", "us", "share"))]
        kernels = row["kernels"][:MOST_KERNELS]
        lines += [_cells(k["kernel"], k["calls"], f"{k['us']:.1f}", f"{k['share']:.1%}") for k in kernels]
    if end is not None and end.get("log"):
        lines += ["", "Its last words:", "", "```", end["log"].replace("```", "'''"), "```"]
    return lines


def _listed(rows: Any) -> list[str]:
    """Tests that did not pass, the failed ones first, skips by reason."""
    failed, others = [], {}
    for row in rows:
        if row["gate"] in gpu_records.BAD_GATES:
            failed.append(f"- {row['name']}: {row.get('reason', row['gate'])}")
        else:
            others.setdefault(row.get("reason", ""), []).append(row["name"])
    skipped = [f"- {len(names)} not run: {reason}" for reason, names in others.items()]
    return ["", *failed, *skipped] if failed or skipped else []


def _line(row: Record, used: list[str]) -> str:
    least = row.get("least_us", {})
    times = ", ".join(
        f"{arm} {_short(us)}" + (f" ({_short(least[arm])})" if arm in least else "")
        for arm, us in row.get("us", {}).items()
    )
    cpu = ", ".join(f"{arm} {_short(us)}" for arm, us in row.get("cpu_us", {}).items())
    ratios = ", ".join(f"{arm} {ratio:.2f}x" for arm, ratio in row.get("times_faster_than", {}).items())
    cells = [row["name"], row.get("dtype", ""), row["gate"], times, cpu, ratios]
    cells += [f"{row[key]:{FIGURES[key][1]}}" if row.get(key) is not None else "" for key in used]
    notes = [_note(key, row[key]) for key in NOTES if row.get(key)]
    if row["gate"] == "failed" and "errors" in row:
        off = ", ".join(f"{arm} {float(error):.2g}" for arm, error in row["errors"].items())
        notes.append(f"off by {off}" + (f", allowed {row['limit']:.2g}" if "limit" in row else ""))
    return _cells(*cells, "; ".join(notes))


def _note(key: str, value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(v) if isinstance(v, float) else v}" for name, v in value.items())
    words = _short(value) if isinstance(value, float) else str(value).strip().partition("\n")[0][:300]
    return words if key in ("note", "reason") else f"{key.replace('_', ' ')} {words}"


def _short(us: float) -> str:
    return f"{us:.0f}" if us >= 100 else f"{us:.2f}" if us >= 0.1 else f"{us:.2g}"


def _table(heads: tuple[str, ...]) -> list[str]:
    return [_cells(*heads), "|" + "---|" * len(heads)]


def _cells(*cells: object) -> str:
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"
