"""The benchmark of the CPU engine: what it measures and prints, on the smallest network."""

from pathlib import Path

import cpu_unet
import pytest
import torch


def test_bench_covers_the_published_table():
    assert {("ho-cifar10", batch) for batch in (1, 4, 8, 16)} < set(cpu_unet.CASES)
    assert {("iddpm-imagenet64", 1), ("digits", 1)} < set(cpu_unet.CASES)


@torch.no_grad()
def test_bench_prints_every_line_the_mean_and_the_split():
    result = cpu_unet.measure("digits", 2, False, 3)
    assert set(result["times_faster"]) == {"eager nchw", "eager nhwc"}
    split = cpu_unet.split_of("digits", 2)
    assert sum(kind["share"] for kind in split["kinds"].values()) == pytest.approx(1)
    assert sum(kind["count"] for kind in split["kinds"].values()) == len(split["instructions"])
    assert all(one["predicted_ms"] > 0 for one in split["instructions"])
    assert cpu_unet.scaling("digits", 2, 3) > 0
    about = {"processor": "p", "threads": 2, "isa": "i", "load": 0, "commit": "c", "versions": {"torch": "2"}}
    twice = [result | {"times_faster_than_best": 2.0}, result | {"times_faster_than_best": 8.0}]
    text = cpu_unet.to_markdown(about, twice, [split], 1.9, {"engine": 1.0, "diffusers": 2.0})
    assert "Geometric mean over the best peer: 4.00x" in text
    assert text.count("| digits | 2 |") == 2
    assert "of peak" in text
    assert "engine 1 MiB, diffusers 2 MiB" in text


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from /proc")
def test_bench_measures_memory_in_a_process():
    assert 0 <= cpu_unet.peak_memory("engine", "digits", 2) < 100
