"""bench/gpu_suite.py on the CPU, where it can only show that it runs: sections, gates, results, a bare checkout."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A machine with PyTorch and Triton alone: an editable install is not seen (-S), and these are missing.
BARE = """
import runpy, sys
sys.path.append({site!r})
sys.path.insert(0, {bench!r})
for name in {missing!r}:
    sys.modules[name] = None
import checkout, fastdiff, fastdiff.kernels
assert fastdiff.__file__ == {package!r} and fastdiff.kernels.__path__ == [{kernels!r}]
sys.argv = ["gpu_suite.py", *{arguments!r}]
runpy.run_path({script!r}, run_name="__main__")
"""
MISSING = ("diffusers", "safetensors", "typer", "rich", "yaml", "psutil", "hypothesis", "scipy", "PIL")


def run(command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)


def check(done, out, sections):
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.with_suffix(".json").read_text())
    assert "No GPU" in found["machine"]["device"]
    assert list(found["sections"]) == sections
    text = out.with_suffix(".md").read_text()
    for name, section in found["sections"].items():
        assert not section["status"].startswith(("broken", "failed")), section
        assert f"## {name}: {section['status']}" in text
        assert all(row["gate"] in ("passed", "none") for row in section["rows"])
    return found["sections"]


@pytest.mark.slow
def test_gpu_suite_runs_from_a_bare_checkout(tmp_path):
    arguments = ["--device", "cpu", "--quick", "--out", str(tmp_path / "dry")]
    script, site = str(ROOT / "bench" / "gpu_suite.py"), sysconfig.get_paths()["purelib"]
    places = {"package": str(ROOT / "fastdiff" / "__init__.py"), "kernels": str(ROOT / "kernels")}
    places |= {"site": site, "bench": str(ROOT / "bench"), "script": script}
    code = BARE.format(missing=MISSING, arguments=arguments, **places)
    everything = ["build", "tests", "kernels", "unet", "sampling", "training", "split"]
    sections = check(run([sys.executable, "-S", "-c", code]), tmp_path / "dry", everything)
    assert sections["tests"]["status"] == "not run: hypothesis missing"
    for name in ("kernels", "unet", "sampling", "training"):
        for row in sections[name]["rows"]:
            assert row["us"]["fastdiff"] > 0
            assert row["times_faster_than"]
    ops = {row["name"].split()[0] for row in sections["kernels"]["rows"]}
    assert ops == {"diffuse", "step", "posterior_mean", "mse", "hybrid", "group_norm_act", "attention", "conv2d_fused"}
    assert "fastdiff's module" in sections["unet"]["rows"][0]["peer"]
    shares = [kernel["share"] for kernel in sections["split"]["rows"][0]["kernels"]]
    assert 0.5 < sum(shares) <= 1.0001


@pytest.mark.slow
def test_gpu_suite_takes_diffusers_and_chosen_sections(tmp_path):
    pytest.importorskip("diffusers")
    command = [sys.executable, "bench/gpu_suite.py", "--device", "cpu", "--quick", "--out", str(tmp_path / "dry")]
    done = run([*command, "--only", "unet", "--only", "tests"])
    sections = check(done, tmp_path / "dry", ["unet", "tests"])
    assert [row["name"] for row in sections["unet"]["rows"]][-1].startswith("diffusers with fd.accelerate")
    # A skipped GPU test is not a pass.
    assert sections["tests"]["status"].startswith("not run: ")


def test_gpu_suite_fails_where_a_gate_does(tmp_path):
    import gpu_measure
    import gpu_suite
    import torch

    x = torch.ones(4)
    arms = {"fastdiff": lambda: x * 1.1, "torch": lambda: x.clone()}
    case = gpu_measure.Case("wrong", arms, lambda: x.double(), "torch", torch.float32)
    row = gpu_measure.measure(case, gpu_measure.Clock(torch.device("cpu")), 3, 1.0)
    assert row["gate"] == "failed"
    # No speed without its gate.
    assert "us" not in row
    assert not gpu_suite.is_good({"status": "1 failed", "rows": [row]})
    assert not gpu_suite.is_good({"status": "broken: X", "rows": []})
    assert gpu_suite.is_good({"status": "there already", "rows": []})
    nan = gpu_measure.Case("nan", {"fastdiff": lambda: x * torch.nan}, lambda: x.double(), None, torch.float32)
    assert gpu_measure.gate(nan)["gate"] == "failed"


def test_gpu_suite_refuses_to_measure_without_a_gpu():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run([sys.executable, "bench/gpu_suite.py"])
    assert done.returncode == 2
    assert "PyTorch finds no GPU" in done.stderr
