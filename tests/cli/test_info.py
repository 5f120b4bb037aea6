"""`fastdiff info`: versions, presets, schedules, tables, plans and models."""

import re

import numpy as np
from PIL import Image

import fastdiff
from fastdiff.cli import environment
from fastdiff.nets.config import PRESETS
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.schedule import NoiseSchedule
from support.command_line import fails, works


def test_info_tells_versions_and_the_machine():
    printed = works("info")
    for word in ("fastdiff", "python", "torch", "C++ extension", "threads", "GPU"):
        assert word in printed


def test_info_gathers_a_bug_report(monkeypatch):
    monkeypatch.setattr(environment, "torch_report", lambda: "PyTorch's own words")
    monkeypatch.setenv("FASTDIFF_CPU_ISA", "generic")
    monkeypatch.setenv("FASTDIFF_API_KEY", "a secret")
    printed = works("info", "report")
    for line in (f"fastdiff: {fastdiff.__version__}", "FASTDIFF_CPU_ISA: generic", "FASTDIFF_API_KEY: (set)"):
        assert line in printed.splitlines()
    assert "installed in: " in printed
    assert "gpus: " in printed
    assert printed.rstrip().endswith("PyTorch's own words")
    assert "a secret" not in printed


def test_info_lists_presets_with_the_papers_sizes():
    printed = works("info", "presets")
    assert "35,746,307" in printed
    assert "113,673,219" in printed
    assert all(name in printed for name in PRESETS)


def test_info_lists_schedules_and_samplers():
    schedules, samplers = works("info", "schedules", "-T", 100), works("info", "samplers")
    assert all(name in schedules for name in NoiseSchedule.names())
    assert all(name in samplers for name in fastdiff.samplers.names(with_statistics=True))


def test_info_writes_a_table(tmp_path):
    works("info", "table", "unipc", "--steps", 5, "--figure", tmp_path / "t.png", "--json", tmp_path / "t.json")
    read = fastdiff.CoefficientTable.from_json((tmp_path / "t.json").read_text())
    expected = fastdiff.samplers.unipc(Diffusion(NoiseSchedule.linear(1000)), 5)
    np.testing.assert_array_equal(read.rows(), expected.rows())
    assert Image.open(tmp_path / "t.png").size > (500, 200)


def test_info_prints_a_table():
    printed = works("info", "table", "ddim", "--steps", 4, "--schedule", "cosine", "-T", 100, "--option", "eta=0.5")
    expected = fastdiff.samplers.ddim(Diffusion(NoiseSchedule.cosine(100)), 4, eta=0.5)
    assert printed.strip() == f"{expected}\nbuilt for T = 100, schedule 'cosine', prediction 'eps'".strip()
    assert printed.splitlines()[1].split()[:4] == ["row", "t", "sigma", "log_snr"]
    schedule = NoiseSchedule.cosine(100)
    first = [float(word) for word in printed.splitlines()[2].split()[1:4]]
    # Six digits are printed.
    np.testing.assert_allclose(
        first, [99, schedule.one_minus_alphas_cumprod[-1] ** 0.5, schedule.log_snr[-1]], rtol=1e-5
    )
    assert "did you mean" in fails("info", "table", "dimm")


def test_info_prints_a_plan(model):
    printed = works("info", "plan", "digits", "--batch", 2)
    for expected in ("winograd4", "attention", "GFLOP", "MB", "predicted, ms", "measured, ms", "1x8x8 -> 32x8x8 3x3"):
        assert expected in printed
    assert re.search(r"arena \d+\.\d MiB, scratch \d+\.\d MiB, weights \d+\.\d MiB", printed)
    rows = [line for line in printed.splitlines() if re.match(r" *\d+ +(stats|norm|conv|attention)", line)]
    assert len(rows) == int(re.search(r"(\d+) instructions", printed)[1])
    # Every instruction has both times.
    assert all(re.search(r" \d+\.\d{3} +\d+\.\d{3} *$", row) for row in rows)
    assert "winograd" not in works("info", "plan", "digits", "--strict")
    half = works("info", "plan", "digits", "--precision", "bfloat16")
    assert "bfloat16" in half
    assert "in bfloat16 here" in half
    weights = [
        float(re.search(r"weights ([\d.]+) MiB", works("info", "plan", "digits", "--memory", memory))[1])
        for memory in ("normal", "low")
    ]
    assert weights[1] < 0.6 * weights[0]
    assert "--strict is --precision strict" in fails("info", "plan", "digits", "--strict", "--precision", "bfloat16")
    assert "instructions" in works("info", "plan", model)
    assert "for 1 images of 16x16" in works("info", "plan", "digits", "--size", 16)
    assert "positive multiples of 2, got 7 x 7" in fails("info", "plan", "digits", "--size", 7)
    assert "does not exist" in fails("info", "plan", "no-such-network")


def test_info_describes_a_model(model, tmp_path):
    printed = works("info", "model", model)
    assert "raw, after 0 steps" in printed
    assert "256 values" in printed
    assert "does not exist" in fails("info", "model", tmp_path / "missing")


def test_info_reads_what_sample_reads(model, tmp_path):
    works("convert", model, tmp_path / "theirs", "--to", "diffusers")
    printed = works("info", "model", tmp_path / "theirs")
    for expected in ("parameters", "predicts", "images", "3x16x16"):
        assert expected in printed
    assert "instructions" in works("info", "plan", tmp_path / "theirs")


def test_info_table_reads_what_it_wrote_and_replaces_nothing_unasked(tmp_path):
    table, figure = tmp_path / "t.json", tmp_path / "t.png"
    words = ["info", "table", "ddim", "--steps", 4, "--json", table]
    written = works(*words, "--figure", figure)
    assert works("info", "table", table).splitlines() == written.splitlines()[:7]
    before = table.read_bytes()
    assert "--json" in fails(*words)
    assert "--figure" in fails("info", "table", "ddim", "--figure", figure)
    assert table.read_bytes() == before
    works("info", "table", "ddim", "--steps", 5, "--json", table, "--overwrite")
    assert len(fastdiff.CoefficientTable.from_json(table.read_text())) == 5
    assert "steps cannot be chosen" in fails("info", "table", table, "--steps", 5)
    assert ".json" in fails("info", "table", "ddim", "--json", tmp_path / "t.txt")
