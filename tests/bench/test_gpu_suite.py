"""bench/gpu_suite.py by its dry run: whatever becomes of a section, the others' results come home."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What a machine with PyTorch and Triton alone lacks.
MISSING = ("diffusers", "safetensors", "typer", "rich", "yaml", "psutil", "hypothesis", "scipy", "PIL")
# As on a bare checkout: an editable install is not seen, and these are missing, in each section's process too.
BARE = f"""
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in repr(finder)]
for name in {MISSING!r}:
    sys.modules[name] = None
"""
SCRIPT = ROOT / "bench" / "gpu_suite.py"
FIRST, REST = ["first"], ["first", "second", "third"]


def run(*arguments, environment=None):
    """As on a bare machine: without site-packages, and so without torch."""
    command = [sys.executable, "-S", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120, env=environment)


class Results:
    def __init__(self, out):
        lines = out.with_name(out.name + ".jsonl").read_bytes().splitlines()
        self.records = []
        for line in lines:
            try:
                self.records.append(json.loads(line))
            except ValueError:
                # Half a line of a killed writer stands by itself.
                assert line == b'{"section": "half a li'
        self.text = out.with_name(out.name + ".md").read_text()
        self.log = out.with_name(out.name + ".log").read_text()
        self.ends = {record["ended"]: record for record in self.records if "ended" in record}

    def rows(self, section):
        return [r["name"] for r in self.records if r.get("section") == section and r.get("gate") == "passed"]


def dry_run(tmp_path, *arguments):
    out = tmp_path / "dry"
    done = run("--dry-run", "--out", out, *arguments)
    assert "Traceback" not in done.stderr, done.stderr
    return done, Results(out)


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found by Linux's /proc")


def state_of(number):
    """A process' state and parent."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return "Z", "0"


def is_running(number):
    return state_of(number)[0] != "Z"


def parent_of(number):
    return int(state_of(number)[1])


def processes():
    return [path.name for path in Path("/proc").glob("[0-9]*")]


def test_dry_run_goes_through_all_sections_without_torch(tmp_path):
    done, results = dry_run(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    listed = [line.split()[0] for line in run("--list").stdout.splitlines()]
    assert list(results.ends) == listed
    assert listed[:4] == ["build", "smoke", "tests", "kernels-bf16"]
    for name, end in results.ends.items():
        assert results.rows(name) == REST
        assert end["status"] == "done: 3 passed"
        assert f"## {name}: done: 3 passed" in results.text
    assert "its times mean nothing" in results.text
    assert done.stdout.rstrip().endswith("All that was run was as it should be.")


@pytest.mark.parametrize(
    ("fault", "status", "rows"),
    [
        ("hang", "cut off after 3 s", FIRST),
        ("exit", "died with exit status 3", FIRST),
        ("silent", "died with exit status 0, before its end", FIRST),
        ("segfault", "died by SIGSEGV", FIRST),
        ("half", "died by SIGKILL", FIRST),
        ("build", "raised RuntimeError: a section that fails before its first row", []),
        ("raise", "done: 2 passed, 1 with an error", ["first", "third"]),
        ("gate", "done: 2 passed, 1 failed", ["first", "third"]),
    ],
)
def test_fault_costs_the_remaining_rows_of_its_section_only(tmp_path, fault, status, rows):
    done, results = dry_run(tmp_path, "--only", "smoke,loop", "--only", "images", "--fault", f"loop={fault}")
    assert done.returncode == 1
    assert list(results.ends) == ["smoke", "loop", "images"]
    assert results.ends["loop"]["status"] == status
    assert results.rows("loop") == rows
    assert results.rows("smoke") == results.rows("images") == REST
    assert f"## loop: {status}" in results.text
    assert "## images: done: 3 passed" in results.text
    assert "Not as it should be: loop." in results.text
    if rows == FIRST:
        assert "It was at: second." in results.text
    if fault == "raise":
        assert "ValueError: a row that raises" in results.text
    if fault == "hang":
        # Where it hung.
        assert "line" in results.log
        assert "misbehave" in results.log


@linux
@pytest.mark.parametrize("fault", ["stubborn", "orphan"])
def test_nothing_of_a_section_lives_on(tmp_path, fault):
    """Neither who ignores SIGTERM, nor who made a session of its own."""
    done, results = dry_run(tmp_path, "--only", "loop,images", "--fault", f"loop={fault}")
    (child,) = [int(line.split()[-1]) for line in results.log.splitlines() if line.startswith("left behind: ")]
    assert not is_running(child)
    assert results.rows("images") == REST
    if fault == "stubborn":
        assert done.returncode == 1
        assert results.ends["loop"]["status"].startswith("cut off after")
    else:
        assert done.returncode == 0
        assert results.ends["loop"]["killed_afterwards"]


def test_section_that_may_take_what_is_left_may_be_cut_off_but_not_die(tmp_path):
    done, results = dry_run(tmp_path, "--only", "peers-16", "--fault", "peers-16=hang")
    assert done.returncode == 0
    assert results.ends["peers-16"]["status"].startswith("cut off")
    done, results = dry_run(tmp_path, "--only", "peers-16", "--fault", "peers-16=segfault")
    assert done.returncode == 1


def test_deadline_of_the_whole_leaves_sections_out_and_says_so(tmp_path):
    begun = time.monotonic()
    done, results = dry_run(tmp_path, "--only", "smoke,loop,images", "--fault", "smoke=hang", "--budget", "2")
    assert time.monotonic() - begun < 60
    assert results.ends["smoke"]["status"].startswith("cut off")
    assert results.ends["loop"]["status"] == results.ends["images"]["status"] == "not run: 0 s were left"
    assert done.returncode == 1


def hanging_run(out):
    """A run whose second section hangs already."""
    command = [sys.executable, "-S", str(SCRIPT), "--dry-run", "--out", str(out), "--only", "smoke,loop"]
    process = subprocess.Popen([*command, "--fault", "loop=hang"], stdout=subprocess.PIPE, cwd=ROOT)
    records = out.with_name("dry.jsonl")
    deadline = time.monotonic() + 60
    while not (records.exists() and b'"loop", "begin": "second"' in records.read_bytes()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def test_interrupted_run_has_its_report(tmp_path):
    process = hanging_run(tmp_path / "dry")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    results = Results(tmp_path / "dry")
    assert results.rows("smoke") == REST
    assert "## loop: still running" in results.text


@linux
def test_killed_run_leaves_its_rows_and_no_section_running(tmp_path):
    process = hanging_run(tmp_path / "dry")
    children = [number for number in map(int, processes()) if parent_of(number) == process.pid]
    assert children
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while any(map(is_running, children)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    results = Results(tmp_path / "dry")
    assert results.rows("smoke") == REST
    assert "## smoke: done: 3 passed" in results.text


def test_results_go_to_the_folder_that_the_environment_names(tmp_path):
    """From an nvidia-smi that names a card; a part's results stand beside those of all."""
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text('#!/bin/sh\ncase "$1" in *=name) echo "ACME Q9 80GB";; *) exit 1;; esac\n')
    smi.chmod(0o755)
    environment = os.environ | {"PATH": f"{smi.parent}:{os.environ['PATH']}", "OUT": str(tmp_path / "out")}
    code = (
        "import sys; sys.path.insert(0, 'bench'); sys.argv = ['x', *sys.argv[1:]]; import gpu_suite; "
        "print(gpu_suite.parse().out)"
    )

    def place(*arguments, **changes):
        command = [sys.executable, "-S", "-c", code, *arguments]
        return Path(
            subprocess.run(
                command, cwd=ROOT, env=environment | changes, capture_output=True, text=True, check=True
            ).stdout.strip()
        )

    assert place() == tmp_path / "out" / "gpu-acme-q9-80gb"
    assert place("--only", "loop,smoke").name == "gpu-acme-q9-80gb_smoke_loop"
    assert place(OUT="") == ROOT / "bench" / "results" / "gpu-acme-q9-80gb"
    assert place("--out", "here/x") == Path("here/x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "smok"], "no section smok; there are build, smoke,"),
        (["--fault", "loop=hang"], "--fault needs --dry-run"),
        (["--dry-run", "--fault", "loop=fire"], "expected SECTION=KIND"),
        (["--device", "cpu"], "--device cpu needs --quick"),
    ],
)
def test_bad_command_line_says_what_is_expected(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_suite_refuses_to_measure_without_a_gpu(tmp_path):
    done = run(environment={**os.environ, "PATH": str(tmp_path)})
    assert done.returncode == 2
    assert "nvidia-smi finds no GPU" in done.stderr


def test_limits_grow_only_where_there_is_time(tmp_path):
    """A section chosen alone finds nothing compiled; the last ones take what is left; nothing passes the budget."""
    import argparse

    import gpu_sections
    import gpu_suite

    def limits(only, budget=gpu_sections.BUDGET):
        options = argparse.Namespace(dry_run=False, is_dry=False, only=only, budget=budget, out=tmp_path / "x")
        suite = gpu_suite.Suite(options)
        suite.watch.close()
        chosen = [s for s in gpu_sections.SECTIONS if s.name in (only or gpu_sections.NAMES)]
        return {section.name: round(suite._limit(section)) for section in chosen}

    seconds = {section.name: section.seconds for section in gpu_sections.SECTIONS}
    everything = limits(None)
    assert everything["loop"] == seconds["loop"]
    assert everything["peers-16"] == gpu_sections.BUDGET
    assert limits(["loop"])["loop"] == 2 * seconds["loop"]
    many = [name for name, limit in seconds.items() if limit and not name.startswith(("peers", "build"))]
    assert sum(limits(many).values()) <= gpu_sections.BUDGET
    assert limits(None, budget=12) | {"loop": 12} == dict.fromkeys(seconds, 12) | {
        name: 0 for name in seconds if name.startswith("peers")
    }
    assert set(limits(None, budget=5).values()) == {0}


def test_sections_fit_into_eight_minutes():
    import gpu_sections

    assert gpu_sections.BUDGET <= 480
    assert sum(section.seconds for section in gpu_sections.SECTIONS) <= gpu_sections.BUDGET
    # Those without a limit of their own come last.
    grows = [section.grows for section in gpu_sections.SECTIONS]
    assert grows == sorted(grows)


def quick_run(tmp_path, sections, environment=None):
    """Real code in small shapes, on the ways that need no GPU."""
    out = tmp_path / "quick"
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--quick", "--out", str(out), "--only"]
    done = subprocess.run(
        [*command, ",".join(sections)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    results = Results(out)
    assert done.returncode == 0, done.stdout[-3000:] + results.log[-3000:]
    assert list(results.ends) == sections
    return results, {
        name: [r for r in results.records if r.get("section") == name and "gate" in r] for name in sections
    }


def bare(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BARE)
    return os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))}


def assert_timed(rows):
    timed = [row for row in rows if row["gate"] == "passed"]
    assert timed
    for row in timed:
        assert row["us"]["fastdiff"] >= row["least_us"]["fastdiff"] > 0


@pytest.mark.slow
def test_kernels_are_measured_from_a_bare_checkout(tmp_path):
    sections = ["build", "smoke", "tests", "kernels-fp32", "sanitizer", "peers-16"]
    _, rows = quick_run(tmp_path, sections, bare(tmp_path))
    kernels = rows["kernels-fp32"]
    assert_timed(kernels)
    names = {row["name"].split()[0].rstrip(",") for row in kernels} - {"ceilings"}
    assert names == {
        "diffuse", "step", "posterior_mean", "mse", "hybrid", "group_norm_act", "attention", "norm", "conv",
    }  # fmt: skip
    norm = next(row for row in kernels if row["name"].startswith("norm, conv"))
    assert set(norm["us"]) == {"fastdiff", "fastdiff norm + cuDNN", "torch"}
    assert rows["tests"][0]["reason"] == "hypothesis missing"


@pytest.mark.slow
def test_networks_are_measured_from_a_bare_checkout(tmp_path):
    sections = ["network", "split", "loop", "training", "images", "peers-training"]
    results, rows = quick_run(tmp_path, sections, bare(tmp_path))
    for name in ("network", "loop", "training", "images"):
        assert_timed(rows[name])
    assert "fastdiff's module" in rows["network"][1]["peer"]
    assert "extrapolated from 10 rows to 50" in results.text
    shares = [kernel["share"] for kernel in rows["split"][0]["kernels"]]
    assert 0.5 < sum(shares) <= 1.0001


@pytest.mark.slow
def test_sections_take_diffusers_and_pytest_where_they_are(tmp_path):
    pytest.importorskip("diffusers")
    results, _ = quick_run(tmp_path, ["tests", "network"])
    assert "diffusers with fd.accelerate" in results.rows("network")
    # A skipped GPU test is not a pass.
    assert results.rows("tests") == []
    assert "needs a CUDA device; a skip here is not a pass" in results.text
