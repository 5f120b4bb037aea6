"""The executor without Python: the program, the C interface, damaged files, and altered ones.

FASTDIFF_FUZZ_FILES sets how many altered files are opened; where it is set, they are opened under AddressSanitizer and
UndefinedBehaviorSanitizer as well, for which the library is compiled once more, and a run is looked at by valgrind.
"""

import os
import re
import shutil
import struct
import subprocess
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import fastdiff as fd
from fastdiff import ops
from fastdiff.engine import export
from fastdiff.engine.native import NativeNetwork
from fastdiff.files.images import write_grid
from support import standalone
from support.builds import ROOT
from support.networks import random_unet, two_levels

pytestmark = [
    pytest.mark.skipif(not ops.has_extension(), reason="the C++ extension is not built"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed"),
]

THOROUGH = "FASTDIFF_FUZZ_FILES" in os.environ
FILES = int(os.environ.get("FASTDIFF_FUZZ_FILES", "300"))
MOST_BYTES = 2_000_000
HEADER, SECTION = export.HEADER, export.SECTION


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return standalone.small_model(tmp_path_factory.mktemp("standalone") / "model.fd")


def test_program_is_small_and_needs_nothing(tmp_path):
    stripped = tmp_path / "fastdiff-run"
    subprocess.run(["strip", "-o", stripped, standalone.program()], check=True)
    assert stripped.stat().st_size < MOST_BYTES
    needed = subprocess.run(["readelf", "-d", stripped], capture_output=True, text=True, check=True).stdout
    names = set(re.findall(r"\(NEEDED\).*\[(\w+)[-.]", needed))
    assert names <= {"libc", "libm", "libstdc", "libstdc++", "libgcc_s", "libpthread", "ld"}, names


def test_info_says_what_a_file_holds(model):
    done = standalone.ran(model, "--info", isa="generic")
    assert done.returncode == 0
    assert "images: 8 x 8, 3 channels, 3 classes\nsampler: 4 rows, 4 evaluations\n" in done.stdout
    assert "instruction set: generic" in done.stdout


@pytest.mark.parametrize(("channels", "num"), [(1, 5), (3, 1)])
def test_png_is_the_grid_that_python_writes(channels, num, tmp_path):
    network = NativeNetwork(random_unet(two_levels(in_channels=channels, out_channels=channels)))
    table = fd.samplers.build("ddim", fd.Diffusion(fd.NoiseSchedule.linear(50)), 3)
    file = standalone.exported(tmp_path / "model.fd", network, table, (channels, 8, 16))
    assert standalone.ran(file, "--num", num, "--out", tmp_path / "found.png").returncode == 0
    images = fd.sample(network, table, shape=(num, channels, 8, 16), progress=False)
    write_grid(tmp_path / "expected.png", images)
    found, expected = (np.asarray(Image.open(tmp_path / name)) for name in ("found.png", "expected.png"))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--num", "0"], "--num must be a whole number from 1 to"),
        (["--num", "1e3"], "--num must be a whole number"),
        (["--num"], "--num needs a value"),
        (["--seed", "-1"], "--seed must be"),
        (["--seed", "18446744073709551616"], "--seed must be"),
        (["--threads=0"], "--threads must be"),
        (["--threads", "9999999999"], "--threads must be"),
        (["--batch-size", "x"], "--batch-size must be"),
        (["--start-id", "-3"], "--start-id must be"),
        (["--sample-ids", "1,,2"], "--sample-ids must be"),
        (["--sample-ids", "1,2", "--num", "3"], "leave out --num"),
        (["--sample-ids", "1", "--start-id", "3"], "leave out one"),
        (["--label", "0,5"], "labels must be in [0, 3), got 5"),
        (["--out", "x.jpg"], "--out must end in .png or .npy, got 'x.jpg'"),
        (["--steps", "3"], "there is no option --steps"),
        (["other.fd"], "one file is expected"),
    ],
)
def test_wrong_options_are_named(model, words, complaint):
    done = standalone.ran(model, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(f"error: .*{re.escape(complaint)}.*\n", done.stderr)


def test_a_file_that_cannot_be_written_leaves_nothing(model, tmp_path):
    done = standalone.ran(model, "--num", 1, "--out", tmp_path / "missing" / "x.npy")
    assert done.returncode == 1
    assert "missing/x.npy: No such file or directory" in done.stderr
    (tmp_path / "x.npy").mkdir()
    assert standalone.ran(model, "--num", 1, "--out", tmp_path / "x.npy").returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_an_instruction_set_that_is_not_there_is_refused(model):
    done = standalone.ran(model, "--info", isa="mmx")
    assert (done.returncode, done.stdout) == (1, "")
    assert "FASTDIFF_CPU_ISA must be one of those this machine runs" in done.stderr


class Altered:
    """A file's bytes, changed, with checksums that are right where they are made so."""

    def __init__(self, contents):
        self.data = bytearray(contents)

    def header(self, place, form, value):
        struct.pack_into(form, self.data, place, value)
        return self

    def entry(self, kind, place, form, value):
        return self.header(HEADER.size + (export.KINDS.index(kind)) * SECTION.size + place, form, value)

    def within(self, kind, place, form, value):
        _, _, offset, _ = SECTION.unpack_from(self.data, HEADER.size + export.KINDS.index(kind) * SECTION.size)
        return self.header(offset + place, form, value)

    def number(self, name, value):
        return self.within("numbers", 8 * export.NUMBERS.index(name), "=q", value)

    def made_right(self):
        magic, order, version, _, count, _ = HEADER.unpack_from(self.data)
        for place in range(HEADER.size, HEADER.size + count * SECTION.size, SECTION.size):
            kind, _, offset, size = SECTION.unpack_from(self.data, place)
            crc = zlib.crc32(self.data[offset : offset + size])
            SECTION.pack_into(self.data, place, kind, crc, offset, size)
        header = HEADER.pack(magic, order, version, len(self.data), count, 0)
        entries = self.data[HEADER.size : HEADER.size + count * SECTION.size]
        HEADER.pack_into(
            self.data, 0, magic, order, version, len(self.data), count, zlib.crc32(entries, zlib.crc32(header))
        )
        return self


SWAPPED = int.from_bytes(export.WORD_ORDER.to_bytes(4, "little"), "big")
BEFORE, LATER = export.VERSION - 1, export.VERSION + 1
# Name: how a file is altered, whether its checksums are made right again, and what is said.
BAD_FILES = {
    "empty": (lambda f: f.data.clear(), False, "it is empty"),
    "of another kind": (lambda f: f.header(0, "=8s", b"\x89PNG\r\n\x1a\n"), False, "it is no exported model"),
    "shorter than a header": (lambda f: f.data.__delitem__(slice(40, None)), False, "fewer than the 64 of a header"),
    "of another word order": (lambda f: f.header(8, "=I", SWAPPED), False, "machines of the other word order"),
    "of the version before": (lambda f: f.header(12, "=I", BEFORE), False, f"it has version {BEFORE} of the format"),
    "of a later version": (lambda f: f.header(12, "=I", LATER), False, f"it has version {LATER} of the format"),
    "cut off": (lambda f: f.data.__delitem__(slice(-1, None)), False, "it was cut off"),
    "with something behind it": (lambda f: f.data.extend(b"x"), False, "something was added to it"),
    "with a damaged header": (lambda f: f.header(HEADER.size + 24, "=Q", 5), False, "its header is damaged"),
    "with damaged weights": (lambda f: f.within("weights", 100, "=I", 7), False, "its section weights is damaged"),
    "with too many sections": (lambda f: f.header(24, "=I", 2**32 - 1), False, "4294967295 sections, which do not fit"),
    "without weights": (lambda f: f.header(24, "=I", 8), True, "its section weights must have whole numbers"),
    "with a section of no kind": (lambda f: f.entry("weights", 0, "=I", 99), True, "is of kind 99"),
    "with a section twice": (lambda f: f.entry("weights", 0, "=I", 1), True, "not known or out of turn"),
    "with a section behind its end": (lambda f: f.entry("weights", 8, "=Q", 2**40), True, "lies outside of it"),
    "with a section that wraps around": (lambda f: f.entry("weights", 16, "=Q", 2**64 - 64), True, "lies outside"),
    "with sections that overlap": (lambda f: f.entry("table", 8, "=Q", 384), True, "lies outside of it"),
    "with a section off its place": (lambda f: f.entry("weights", 8, "=Q", 1), True, "lies outside of it"),
    "of another layout": (lambda f: f.number("plan_width", 3), True, "have 3, 32 and 64 numbers"),
    "of huge images": (lambda f: f.number("height", 2**62), True, "its height must be in"),
    "of other images": (lambda f: f.number("height", 4), True, "x must have the size that the plan reads"),
    "of many rows": (lambda f: f.number("rows", 2**62), True, "its rows must be in"),
    "of more rows than it has": (lambda f: f.number("rows", 5), True, "its section table must have 640 bytes, got 512"),
    "of more classes": (lambda f: f.number("classes", 4), True, "its section labels must have"),
    "with a small arena": (lambda f: f.number("arena", 100), True, "reaches outside of the arena"),
    "with its input elsewhere": (lambda f: f.number("input", -16), True, "the arena is for fewer samples"),
    "with a deep history": (lambda f: f.number("history_depth", 4), True, "its history_depth must be in"),
    "with a scale of no number": (
        lambda f: f.within("numbers", 8 * len(export.NUMBERS) - 8, "=d", float("inf")), True, "scale of its first",
    ),
    "with a row of no number": (lambda f: f.within("table", 4, "=f", float("nan")), True, "row 0 of its table has"),
    "with a row that needs more": (lambda f: f.within("table", 4 * 6, "=f", 1.0), True, "uses the saved state"),
    "with no instruction": (lambda f: f.within("code", 0, "=q", 17), True, "(no instruction) has numbers"),
    "with too many channels": (lambda f: f.within("code", 8 * 8, "=q", 2**61), True, "numbers that do not fit"),
    "with a place outside": (lambda f: f.within("code", 8 * 16, "=q", 2**40), True, "reaches outside of the arena"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_refused_in_a_sentence(name, model, tmp_path):
    alter, right, complaint = BAD_FILES[name]
    altered = Altered(model.read_bytes())
    alter(altered)
    path = tmp_path / "bad.fd"
    path.write_bytes((altered.made_right() if right else altered).data)
    done = standalone.ran(path, "--num", 1, "--out", tmp_path / "x.npy")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(f"error: {re.escape(str(path))}: .*{re.escape(complaint)}.*\n", done.stderr), done.stderr


def test_a_path_that_holds_no_file_is_refused(tmp_path):
    for path, complaint in ((tmp_path, "it is no file"), (tmp_path / "missing.fd", "No such file or directory")):
        done = standalone.ran(path)
        assert (done.returncode, done.stderr) == (1, f"error: {path}: {complaint}\n")


def test_a_file_made_right_again_is_the_file(model):
    """Or else the sentences above are about something else."""
    assert Altered(model.read_bytes()).made_right().data == model.read_bytes()


def test_example_of_the_documentation_is_compiled_and_runs(tmp_path):
    text = (ROOT / "docs" / "standalone.md").read_text()
    source = standalone.TESTS / "example.c"
    assert f"```c\n{source.read_text()}```" in text
    network = NativeNetwork(random_unet(two_levels()))
    table = fd.samplers.build("ddpm", fd.Diffusion(fd.NoiseSchedule.linear(50)), 4)
    file = standalone.exported(tmp_path / "model.fd", network, table, (1, 8, 8))
    done = subprocess.run([standalone.linked("example", source), file], capture_output=True, text=True, check=True)
    expected = fd.sample(network, table, shape=(4, 1, 8, 8), seed=7, progress=False)
    found = torch.tensor([float.fromhex(line) for line in done.stdout.split()]).view(4, 1, 8, 8)
    assert torch.equal(found, expected)


@pytest.fixture(scope="module")
def models(model, tmp_path_factory):
    """Besides the small one another, with attention of several heads and a multistep sampler."""
    unet = random_unet(two_levels(channel_mult=(2, 4), attention_resolutions=(8, 4), head_channels=8))
    table = fd.samplers.build("unipc", fd.Diffusion(fd.NoiseSchedule.linear(50)), 4)
    other = tmp_path_factory.mktemp("standalone") / "other.fd"
    return model, standalone.exported(other, NativeNetwork(unet), table, (1, 8, 8))


def check_altered_files(program, models):
    for model in models:
        command = [program, model, str(FILES // len(models)), "0"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        ran = int(re.fullmatch(rf"(\d+) of {FILES // len(models)} ran\n", done.stdout)[1])
        # Neither is everything refused before it is looked at, nor does anything go.
        assert FILES // len(models) // 10 < ran < FILES // len(models)


def test_altered_files_are_refused_or_run(models):
    check_altered_files(standalone.linked("fuzz", standalone.TESTS / "fuzz.cpp"), models)


@pytest.mark.skipif(not THOROUGH, reason="FASTDIFF_FUZZ_FILES is not set")
@pytest.mark.timeout(1200)
def test_altered_files_are_refused_or_run_under_sanitizers(models):
    program = standalone.linked("sanitized-fuzz", standalone.TESTS / "fuzz.cpp", *standalone.SANITIZERS)
    check_altered_files(program, models)


@pytest.mark.skipif(not THOROUGH or shutil.which("valgrind") is None, reason="no FASTDIFF_FUZZ_FILES, or no valgrind")
@pytest.mark.timeout(600)
def test_valgrind_finds_nothing(models, tmp_path):
    for number, model in enumerate(models):
        command = ["valgrind", "-q", "--error-exitcode=9", "--leak-check=full", standalone.program(), model]
        # It does not know AVX-512.
        environment = os.environ | {"FASTDIFF_CPU_ISA": "avx2"}
        command += ["--num", "3", "--threads", "2", "--batch-size", "2", "--out", tmp_path / f"{number}.npy"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
