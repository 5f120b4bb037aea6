"""The examples in docs/examples run as their schedulers would run them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fastdiff.generation import formats
from fastdiff.generation.folder import JobFolder
from fastdiff.generation.job import Job
from support.command_line import small_model

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture
def environment(tmp_path):
    """A `fastdiff` on the path, in one thread."""
    command = tmp_path / "bin" / "fastdiff"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fastdiff "$@"\n')
    command.chmod(0o755)
    return os.environ | {"PATH": f"{command.parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def done(folder):
    job = Job.read(folder)
    return [part.number for part in JobFolder(folder, job, formats.SUFFIXES["npz"]).done()]


def test_slurm_array_makes_its_parts(tmp_path, environment):
    model = small_model(tmp_path / "model", size=8, channels=1)
    task = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "0"}
    task |= {"SLURM_ARRAY_TASK_MAX": "1", "SLURM_CPUS_PER_TASK": "1", "NUM": "1100", "STEPS": "1"}
    command = ["bash", str(EXAMPLES / "slurm_generate.sh"), str(model), str(tmp_path / "out")]
    subprocess.run(command, env=environment | task, check=True, timeout=300)
    assert done(tmp_path / "out") == [1]


def test_kubernetes_job_makes_its_parts(tmp_path, environment):
    job = yaml.safe_load((EXAMPLES / "kubernetes_generate.yaml").read_text())
    assert job["spec"]["completionMode"] == "Indexed"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    assert int(variables["JOB_COMPLETIONS"]) == job["spec"]["completions"]
    model = small_model(tmp_path / "model", size=8, channels=1)
    # Of the command only the places and the amount of work are other than in the file.
    places = {"/data/model": str(model), "/data/samples": str(tmp_path / "out"), "50000": "1100", "20": "1", "4": "1"}
    command = [places.get(word, word) for word in container["command"] + container["args"]]
    variables |= {"JOB_COMPLETION_INDEX": "2"}
    subprocess.run(command, env=environment | variables, check=True, timeout=300)
    assert done(tmp_path / "out") == [2]
