"""Exported models: the layout is the executor's, and what it samples is `fastdiff.sample`'s to the bit."""

import hashlib
import io
import os
import re
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff import ops
from fastdiff.engine import export
from fastdiff.engine.native import NativeNetwork
from fastdiff.process.noise import Stream
from support import standalone
from support.builds import ROOT
from support.networks import random_unet, small_preset, two_levels

pytestmark = [
    pytest.mark.skipif(not ops.has_extension(), reason="the C++ extension is not built"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed"),
]

INCLUDE = ROOT / "csrc" / "include"
LINEAR = fd.NoiseSchedule.linear(50)
# Name: what the network predicts, its configuration, the sampler, its steps, [C, H, W], other settings.
CASES = {
    "ddpm": ("eps", {}, "ddpm", 7, (1, 8, 8)),
    "ddpm in colour": ("eps", {"in_channels": 3, "out_channels": 3}, "ddpm", 7, (3, 8, 8)),
    "learned variance": ("eps", {"in_channels": 3, "out_channels": 6}, "ddpm", 7, (3, 8, 8)),
    "learned variance in grey": ("v", {"out_channels": 2}, "ddpm", 7, (1, 8, 8)),
    "ddim of v": ("v", {}, "ddim", 5, (1, 8, 16)),
    "unipc": ("eps", {"in_channels": 3, "out_channels": 3}, "unipc", 6, (3, 16, 8)),
    "dpmpp of x0": ("x0", {"in_channels": 3, "out_channels": 3}, "dpmpp", 6, (3, 8, 8)),
    "heun": ("eps", {}, "heun", 5, (1, 8, 8)),
    "classes": ("v", {"num_classes": 4}, "unipc", 5, (1, 8, 8)),
}


def table_of(prediction, changes, sampler, steps):
    learned = changes.get("out_channels", 1) == 2 * changes.get("in_channels", 1)
    variance = "learned_range" if learned else "fixed_small"
    return fd.samplers.build(sampler, fd.Diffusion(LINEAR, prediction=prediction, variance=variance), steps)


def check_case(name, folder, num=5, precision="fast"):
    prediction, changes, sampler, steps, shape = CASES[name]
    table = table_of(prediction, changes, sampler, steps)
    network = NativeNetwork(random_unet(two_levels(**changes)), precision)
    labels = [3, 1, 0, 1, 2][:num] if "num_classes" in changes else None
    model = standalone.exported(folder / "model.fd", network, table, shape)
    kwargs = {} if labels is None else {"y": torch.tensor(labels)}
    expected = fd.sample(
        network,
        table,
        shape=(num, *shape),
        seed=2**63 + 5,
        sample_ids=range(7, 7 + num),
        progress=False,
        model_kwargs=kwargs,
    )
    options = ["--num", num, "--seed", 2**63 + 5, "--start-id", 7]
    options += [] if labels is None else ["--label", ",".join(map(str, labels))]
    for threads, batch in ((1, 2), (2, num)):
        found = standalone.images_of(model, folder, *options, "--threads", threads, "--batch-size", batch)
        assert standalone.same_bits(found, expected), (name, threads)


@pytest.mark.parametrize("name", CASES)
def test_program_samples_what_python_does(name, tmp_path):
    check_case(name, tmp_path)


@pytest.mark.filterwarnings("ignore:this processor has no products of bfloat16")
def test_program_samples_what_python_does_in_bfloat16(tmp_path):
    check_case("unipc", tmp_path, precision="bfloat16")


@pytest.mark.parametrize("preset", ["ho-cifar10", "adm-imagenet64", "digits"])
def test_program_samples_what_python_does_with_a_presets_structure(preset, tmp_path):
    network = NativeNetwork(random_unet(small_preset(preset, num_classes=None)), "strict")
    config = network.unet.config
    shape = (config.in_channels, config.image_size, config.image_size)
    learned = config.out_channels != config.in_channels
    diffusion = fd.Diffusion(LINEAR, variance="learned_range" if learned else "fixed_small")
    table = fd.samplers.build("unipc", diffusion, 3)
    model = standalone.exported(tmp_path / "model.fd", network, table, shape)
    expected = fd.sample(network, table, shape=(2, *shape), seed=1, progress=False)
    assert standalone.same_bits(standalone.images_of(model, tmp_path, "--num", 2, "--seed", 1), expected)


def test_sample_ids_are_those_of_python(tmp_path):
    table = table_of("eps", {}, "ddpm", 4)
    network = NativeNetwork(random_unet(two_levels()))
    model = standalone.exported(tmp_path / "model.fd", network, table, (1, 8, 8))
    expected = fd.sample(network, table, shape=(3, 1, 8, 8), sample_ids=[9, 2**62, 9], progress=False)
    assert standalone.same_bits(standalone.images_of(model, tmp_path, "--sample-ids", f"9,{2**62},9"), expected)


def test_labels_are_taken_in_turn(tmp_path):
    table = table_of("v", {}, "ddim", 3)
    network = NativeNetwork(random_unet(two_levels(num_classes=4)))
    model = standalone.exported(tmp_path / "model.fd", network, table, (1, 8, 8), classes_in_turn=3)

    def expected(labels):
        y = torch.tensor(labels)
        return fd.sample(network, table, shape=(5, 1, 8, 8), progress=False, model_kwargs={"y": y})

    assert standalone.same_bits(standalone.images_of(model, tmp_path, "--num", 5), expected([0, 1, 2, 0, 1]))
    found = standalone.images_of(model, tmp_path, "--num", 5, "--label", "3,1")
    assert standalone.same_bits(found, expected([3, 1, 3, 1, 3]))


ISA = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
import importlib.util, torch, fastdiff._C
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("test_export", "tests/engine/test_export.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
for name in ("ddpm in colour", "learned variance", "unipc", "classes"):
    module.check_case(name, Path(sys.argv[1]), 3)
module.check_case("unipc", Path(sys.argv[1]), 3, "bfloat16")
print(fastdiff._C.cpu_isa())
"""


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512", "avx512bf16", "avx512amx"])
def test_program_samples_what_python_does_with_every_instruction_set(isa, tmp_path):
    standalone.program()
    command = [sys.executable, "-c", ISA, str(tmp_path)]
    environment = os.environ | {"FASTDIFF_CPU_ISA": isa}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    if "must be one of" in done.stderr:
        pytest.skip(f"this processor does not run {isa}")
    assert (done.returncode, done.stdout.strip()) == (0, isa), done.stderr[-3000:]


def test_layout_is_that_of_the_executor():
    kinds = standalone.enumerators("file_layout.h", "FileKind")
    assert [kind.removeprefix("FILE_").lower() for kind in kinds] == [*export.KINDS, "kinds"]
    text = (INCLUDE / "file_layout.h").read_text()
    inside = re.search(r"struct FileNumbers \{(.*?)\};", text, re.DOTALL)[1]
    fields = [name.strip() for line in re.findall(r"(?:int64_t|double) ([^;]*);", inside) for name in line.split(",")]
    assert tuple(fields) == export.NUMBERS
    assert (export.HEADER.size, export.SECTION.size) == (64, 32)
    assert f"FILE_VERSION = {export.VERSION};" in text
    assert f"FILE_WORD_ORDER = 0x{export.WORD_ORDER:08x};" in text
    assert f"FILE_ALIGNMENT = {export.ALIGNMENT};" in text
    assert f'FILE_MAGIC[] = "{export.MAGIC.decode()}";' in text
    assert f"STREAM_INITIAL = {int(Stream.INITIAL)};" in (INCLUDE / "noise_layout.h").read_text()


# Of the headers without comments and blanks, by version of the format.
LAYOUTS = {1: "3ce93808978a0138", 2: "8954655cc3b3f2f0"}


def test_a_changed_layout_has_a_new_version():
    """A file of another layout would be read wrongly: raise FILE_VERSION and VERSION, and add the digest here."""
    texts = [(INCLUDE / f"{name}_layout.h").read_text() for name in ("file", "plan", "row", "noise")]
    code = "".join(re.sub(r"//.*|\s", "", text) for text in texts)
    code = re.sub(r"FILE_VERSION=\d+", "", code)
    assert {export.VERSION: hashlib.sha256(code.encode()).hexdigest()[:16]} == {export.VERSION: LAYOUTS[export.VERSION]}


def test_sections_are_aligned_and_weights_are_as_packed(tmp_path):
    network = NativeNetwork(random_unet(two_levels()))
    model = standalone.exported(tmp_path / "model.fd", network, table_of("eps", {}, "ddim", 3), (1, 8, 8), text="words")
    contents = model.read_bytes()
    *_, size, count, _ = export.HEADER.unpack_from(contents)
    assert (size, count) == (len(contents), len(export.KINDS) - 1)
    sections = {}
    for number in range(count):
        kind, _, offset, length = export.SECTION.unpack_from(
            contents, export.HEADER.size + number * export.SECTION.size
        )
        assert offset % export.ALIGNMENT == 0
        sections[export.KINDS[kind - 1]] = contents[offset : offset + length]
    assert sections["text"] == b"words"
    packed = network.packed(network.plan(8, 8))
    assert sections["weights"] == packed.numpy().tobytes()
    numbers = dict(
        zip(export.NUMBERS, struct.unpack(f"={len(export.NUMBERS) - 1}qd", sections["numbers"]), strict=True)
    )
    assert (numbers["height"], numbers["rows"], numbers["classes"]) == (8, 3, 0)
    table = np.frombuffer(sections["table"], np.float32).reshape(3, -1)
    assert table.shape[1] == 32


@pytest.mark.parametrize(
    ("changes", "sampler", "shape", "complaint"),
    [
        ({}, "ddim_encode", (1, 8, 8), "starts from an image"),
        ({"in_channels": 4}, "ddim", (1, 8, 8), "4 channels, 1 of them the noisy image"),
        ({}, "ddim", (1, 8, 9), "positive multiples of 2"),
        ({"in_channels": 3}, "ddim", (3, 8, 8), "the model's output must have shape"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(changes, sampler, shape, complaint):
    table = fd.samplers.build(sampler, fd.Diffusion(LINEAR), 4)
    network = NativeNetwork(random_unet(two_levels(**changes)))
    with pytest.raises(ValueError, match=complaint):
        export.write_model(io.BytesIO(), network, table, shape)
