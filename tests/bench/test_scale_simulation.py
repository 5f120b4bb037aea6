"""bench/scale_simulation.py: what it assumes of fastdiff/generation is counted there, and its clock is right."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import scale_simulation
from scale_simulation import Requests, Setting, simulate

from fastdiff.generation.job import MANIFEST
from support.command_line import small_model
from support.tolerances import FLOAT64

# Nothing goes wrong, and the store costs nothing.
CALM = Setting(
    10_000, 4, part_size=100, start_seconds=0.0, failures_per_day=0.0, preemptions_per_day=0.0, slow_share=0.0,
    latency=0.0, store_requests=1e12, worker_bytes=1e15, store_bytes=1e15,
)  # fmt: skip

COUNTED = """
import collections, os, sys
counts = collections.Counter()
watched = {"open", "os.rename", "os.remove", "os.listdir", "os.scandir"}
def hook(event, arguments):
    if event in watched and str(arguments[0]).startswith(sys.argv[2]):
        counts[event] += 1
import fastdiff as fd
from fastdiff.generation.generate import Request, generate
pipe = fd.Pipeline.from_pretrained(sys.argv[1])
request = Request(int(sys.argv[3]), steps=1, part_size=1)
sys.addaudithook(hook)
folder = generate(pipe, sys.argv[2], request)
print(sum(counts.values()))
counts.clear()
generate(pipe, sys.argv[2], request)
print(sum(counts.values()))
counts.clear()
folder.listed()
print(sum(counts.values()))
"""


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """Opens, renames, removals and listings of a job that is made, started again and counted, by its parts."""
    model = small_model(tmp_path_factory.mktemp("model") / "m", size=8, channels=1)
    found = {}
    for num in (3, 8):
        out = tmp_path_factory.mktemp("job") / str(num)
        done = subprocess.run(
            [sys.executable, "-c", COUNTED, str(model), str(out), str(num)], check=True, capture_output=True, text=True
        )
        found[num] = [int(line) for line in done.stdout.split()]
    return found, out


def test_requests_of_a_part_are_those_of_the_real_code(counted):
    few, many = counted[0][3], counted[0][8]
    made, again, count = ((b - a) / 5 for a, b in zip(few, many, strict=True))
    requests = Requests()
    assert made == requests.look + requests.make
    assert again == requests.look + requests.verify
    assert few[1] == requests.start + 3 * again
    # A listing, whatever the number of parts.
    assert (few[2], count) == (1, 0)


def test_sizes_are_those_of_the_real_code(counted):
    folder = counted[1]
    records = [path.stat().st_size for path in (folder / "parts").glob("*.json")]
    assert max(records) <= Setting(1, 1).record_bytes
    # The manifest says the table and the labels' digest, and grows with neither ids nor parts.
    assert (folder / MANIFEST).stat().st_size < 10_000


def test_a_calm_job_takes_what_division_says():
    found = simulate(CALM)
    assert found.seconds == pytest.approx(10_000 / 4 / 50)
    assert found.seconds == pytest.approx(found.ideal_seconds)
    assert (found.lost_parts, found.files) == (0, 202)
    assert found.wasted_share == pytest.approx(0, abs=FLOAT64)


def test_a_part_is_the_least_that_a_worker_does():
    found = simulate(replace(CALM, workers=400))
    assert found.seconds == pytest.approx(100 / 50)
    assert found.idle_share == pytest.approx(0.75)


def test_a_straggler_holds_up_static_shards_and_no_queue():
    slow = replace(CALM, slow_share=0.25, images=100_000)
    assert simulate(slow).seconds == pytest.approx(3 * 100_000 / 4 / 50)
    # Three that do 1 and one that does 1/3; the last parts do not end together.
    assert simulate(replace(slow, sharing="queue")).seconds == pytest.approx(100_000 / 50 / (3 + 1 / 3), rel=0.02)


def test_lost_work_is_what_failures_of_that_rate_cost():
    """A part of length L at rate r takes (e^(rL) - 1) / r on average, whatever is lost on the way."""
    rate, length = 0.01, 100 / 50
    found = simulate(replace(CALM, images=4_000_000, failures_per_day=rate * 86400, verify=False))
    parts = 40_000 / 4
    wanted = parts * (math.exp(rate * length) - 1) / rate
    # The largest of four workers' sums of 10,000 parts.
    assert found.seconds == pytest.approx(wanted, rel=0.01)
    assert found.lost_parts == pytest.approx(40_000 * rate * length, rel=0.1)


def test_the_store_is_a_bottleneck_at_its_rate():
    found = simulate(replace(CALM, images=10**6, workers=1000, store_requests=100.0, images_per_second=1e6))
    requests = 10_000 * (Requests().look + Requests().make)
    # Starts and the listings of the end come on top.
    assert requests / 100 <= found.seconds < 1.15 * requests / 100


def test_tables_are_printed_and_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scale_simulation", "--quick", "--json", str(tmp_path / "x.json")])
    assert scale_simulation.main() == 0
    assert "| 10^7 | 4,096 | 512 |" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "x.json").read_text())) == {"as it is", "changes", "preemption"}
