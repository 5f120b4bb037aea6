"""The benchmark of the CPU engine: what it measures and prints, on the smallest network."""

from pathlib import Path

import cpu_profile
import cpu_unet
import pytest
import torch

ABOUT = {"processor": "p", "threads": 2, "isa": "i", "load": 0, "commit": "c", "versions": {"torch": "2"}}


def test_bench_covers_the_published_table():
    assert {("ho-cifar10", batch) for batch in (1, 4, 8, 16)} < set(cpu_unet.CASES)
    assert {("iddpm-imagenet64", 1), ("adm-imagenet64", 1), ("digits", 1), ("digits", 64)} < set(cpu_unet.CASES)
    cases = cpu_unet.cases_of("ho", ["one thread", "4 busy"])
    assert cases == [("ho-cifar10", 1, "one thread"), ("ho-cifar10", 8, "one thread"), ("ho-cifar10", 1, "4 busy")]


def test_bench_races_processes_of_their_own_and_prints_every_line():
    found = cpu_unet.measure("digits", 2, ["engine", "eager nchw"], "1 busy", 2)
    engines = found["engines"]
    assert set(engines) == {"engine", "eager nchw"}
    # Both compute the network that float64 does.
    assert all(one["error"] < 1e-5 for one in engines.values())
    assert all(0 < one["least_ms"] <= one["ms"] for one in engines.values())
    assert engines["eager nchw"]["times_faster"] > 0
    quiet = found | {"condition": "quiet"}
    text = cpu_unet.to_markdown({"machine": ABOUT, "results": [quiet, found], "missing": ["mnn"]})
    assert "Not installed: mnn." in text
    assert text.count("| digits | 2 | engine |") == 3
    assert "over the fair share" in text


def test_results_are_added_to_those_there_are():
    def result(preset, condition, **engines):
        return {"preset": preset, "batch": 1, "condition": condition, "engines": engines}

    results = [result("a", "quiet", engine=1), result("a", "1 busy", engine=2)]
    cpu_unet.add(results, result("b", "quiet", engine=3, peer=4))
    cpu_unet.add(results, result("b", "quiet", engine=5, other=6))
    cpu_unet.add(results, result("a", "one thread", engine=7))
    assert [(r["preset"], r["condition"]) for r in results] == [
        ("a", "quiet"), ("b", "quiet"), ("a", "1 busy"), ("a", "one thread"),
    ]  # fmt: skip
    assert results[1]["engines"] == {"engine": 3, "peer": 4, "other": 6}


def test_bench_names_an_engine_that_cannot_be_built():
    found = cpu_unet.measure("digits", 1, ["engine", "nothing"], "quiet", 1)
    assert "KeyError" in found["engines"]["nothing"]["failed"]
    assert "did not run" in "\n".join(cpu_unet.to_lines(found))


@torch.no_grad()
def test_bench_splits_the_engines_time():
    split = cpu_profile.split_of("digits", 2)
    assert sum(kind["share"] for kind in split["kinds"].values()) == pytest.approx(1)
    assert sum(kind["count"] for kind in split["kinds"].values()) == len(split["instructions"])
    assert all(one["predicted_ms"] > 0 for one in split["instructions"])
    assert cpu_profile.scaling("digits", 2, 3) > 0
    assert any("of peak" in line for line in cpu_profile.to_markdown([split]))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from /proc")
def test_bench_measures_memory_in_a_process():
    assert 0 <= cpu_profile.peak_memory("engine", "digits", 2) < 100
