"""The executor without Python, compiled for tests: by CMake where there is one, else from the same lists of sources."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import fastdiff as fd
from fastdiff.engine.export import write_model
from fastdiff.engine.native import NativeNetwork
from fastdiff.process.table import CoefficientTable
from support import builds
from support.builds import ROOT
from support.networks import random_unet, two_levels

FOLDER = ROOT / "csrc" / "standalone"
TESTS = ROOT / "tests" / "csrc" / "standalone"
CMAKE = shutil.which("cmake")
# Nothing that a test means to see in a result.
SANITIZERS = ("-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def lines(name: str) -> list[str]:
    """Of a list in the library's folder."""
    return (FOLDER / name).read_text().split()


def _read() -> list[Path]:
    sets = ("generic", "avx2", "avx512", "avx512bf16", "avx512amx")
    folders = [ROOT / "csrc" / name for name in ("standalone", "include", "cpu", *sets)]
    return [path for folder in folders for path in folder.iterdir() if path.suffix in (".h", ".cpp", ".txt")]


def _flags(extra: Sequence[str]) -> str:
    return shlex.join(
        ["-std=c++20", *(extra or ["-O3"]), *lines("flags.txt"), "-Werror", "-I../include", "-I../cpu", "-I."]
    )


def _optimisation(source: str) -> tuple[str, ...]:
    """As in CMakeLists.txt."""
    return ("-Os",) if "/generic/" in source else ("-O3",)


def _compiler() -> str:
    return "ccache g++" if shutil.which("ccache") else "g++"


def _by_cmake(target: str, made: str, place: Path) -> list[str]:
    folder = shlex.quote(str(builds.PLACE / "standalone"))
    launcher = "-DCMAKE_CXX_COMPILER_LAUNCHER=ccache" if shutil.which("ccache") else ""
    generator = "-G Ninja" if shutil.which("ninja") else ""
    return [
        "sh", "-c",
        f"cmake -S {shlex.quote(str(FOLDER))} -B {folder} {generator} {launcher} -DFASTDIFF_WERROR=ON > /dev/null"
        f" && cmake --build {folder} --target {target} > /dev/null && cp {folder}/{made} {shlex.quote(str(place))}",
    ]  # fmt: skip


def _library_by_hand(place: Path, extra: Sequence[str]) -> list[str]:
    # Files of one name in several folders: their objects are named by their number.
    compiled = " ".join(
        f"&& {_compiler()} {_flags(extra or _optimisation(source))} -c {source} -o $objects/{number}.o"
        for number, source in enumerate(lines("sources.txt"))
    )
    return [
        "sh", "-c",
        f"cd {shlex.quote(str(FOLDER))} && objects=$(mktemp -d) {compiled}"
        f" && ar rcs {shlex.quote(str(place))} $objects/*.o && rm -r $objects",
    ]  # fmt: skip


def library(*extra: str) -> Path:
    """The static library; with flags in the place of the optimisations, compiled by hand."""

    def command(place: Path) -> list[str]:
        if CMAKE and not extra:
            return _by_cmake("fastdiff", "libfastdiff.a", place)
        return _library_by_hand(place, extra)

    return builds.built("libfastdiff.a", command, _read())


def program() -> Path:
    """fastdiff-run."""
    made = library()

    def command(place: Path) -> list[str]:
        if CMAKE:
            return _by_cmake("fastdiff-run", "fastdiff-run", place)
        sources = " ".join(lines("program.txt"))
        text = (
            f"cd {shlex.quote(str(FOLDER))} && g++ {_flags(())} {sources} {made} -pthread -o {shlex.quote(str(place))}"
        )
        return ["sh", "-c", text]

    return builds.built("fastdiff-run", command, _read())


def linked(name: str, source: Path, *extra: str) -> Path:
    """A program of a test over the library."""
    made = library(*extra)
    folders = [f"-I{FOLDER}", f"-I{ROOT / 'csrc' / 'include'}"]

    def command(place: Path) -> list[str]:
        if source.suffix != ".c":
            return [
                "g++",
                "-std=c++20",
                *(extra or ["-O2"]),
                *folders,
                str(source),
                str(made),
                "-pthread",
                "-o",
                str(place),
            ]
        compiled = shlex.join(["gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", *folders, "-c", str(source), "-o"])
        # Linked as a person's C program is, who adds the C++ library.
        text = f"{compiled} {place}.o && gcc {place}.o {made} -lstdc++ -lm -pthread -o {place} && rm {place}.o"
        return ["sh", "-c", text]

    return builds.built(name, command, [source, made])


def ran(*words: object, isa: str | None = None) -> subprocess.CompletedProcess[str]:
    """What fastdiff-run did."""
    environment = os.environ | ({} if isa is None else {"FASTDIFF_CPU_ISA": isa})
    command = [str(word) for word in (program(), *words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def exported(
    path: Path, network: NativeNetwork, table: CoefficientTable, shape: tuple[int, int, int], **options: object
) -> Path:
    """A file."""
    with path.open("wb") as file:
        size = write_model(file, network, table, shape, **options)
    assert path.stat().st_size == size
    return path


def small_model(path: Path) -> Path:
    """Of a small network with labels and a learned variance, and four noisy rows."""
    diffusion = fd.Diffusion(fd.NoiseSchedule.linear(50), variance="learned_range")
    network = NativeNetwork(random_unet(two_levels(in_channels=3, out_channels=6, num_classes=3)))
    return exported(path, network, fd.samplers.build("ddpm", diffusion, 4), (3, 8, 8))


def images_of(model: Path, folder: Path, *options: object) -> np.ndarray:
    """What the program samples."""
    out = folder / "images.npy"
    done = ran(model, "--out", out, *options)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return np.load(out)


def same_bits(found: np.ndarray, expected: torch.Tensor) -> bool:
    """Whether images are equal to the bit, NaN included."""
    wanted = expected.contiguous().numpy()
    return found.shape == wanted.shape and bool((found.view(np.uint32) == wanted.view(np.uint32)).all())


def enumerators(header: str, name: str) -> list[str]:
    """Names of an enumeration in a header of csrc/include."""
    text = re.sub(r"//.*", "", (ROOT / "csrc" / "include" / header).read_text())
    inside = re.search(rf"enum {name} : \w+ \{{(.*?)\}}", text, re.DOTALL)
    assert inside is not None
    return [part.split("=")[0].strip() for part in inside[1].split(",") if part.strip()]
