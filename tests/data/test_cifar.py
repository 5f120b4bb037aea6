"""CIFAR-10's own files: both layouts give the same images, and no pickle runs anything."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdiff.data.cifar import is_cifar10, load_cifar10
from support.pictures import RNG

NAMES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def batches(num: int = 7) -> dict[str, tuple[np.ndarray, list[int]]]:
    return {
        name: (RNG.integers(0, 256, (num, 3072), dtype=np.uint8), RNG.integers(0, 10, num).tolist()) for name in NAMES
    }


def as_python_2(value: Any) -> bytes:
    """The pickle that Python 2 wrote, of protocol 2, as the published files are: texts are of bytes."""

    def text(contents: bytes) -> bytes:
        return b"T" + len(contents).to_bytes(4, "little") + contents

    pixels, labels = value
    # As numpy.ndarray.__reduce__ gives it: _reconstruct(ndarray, (0,), 'b'), then the state.
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    kind = (
        b"cnumpy\ndtype\n"
        + text(b"u1")
        + b"K\x00K\x01\x87R(K\x03"
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    shape = b"M" + len(pixels).to_bytes(2, "little") + b"M" + (3072).to_bytes(2, "little") + b"\x86"
    array += b"(K\x01" + shape + kind + b"\x89" + text(pixels.tobytes()) + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    body = text(b"batch_label") + text(b"training batch 1 of 5") + text(b"labels") + numbers + text(b"data") + array
    names = b"](" + b"".join(text(b"%d.png" % index) for index in range(len(labels))) + b"e"
    return b"\x80\x02}(" + body + text(b"filenames") + names + b"u."


def write(folder: Path, held: dict[str, tuple[np.ndarray, list[int]]], layout: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, (pixels, labels) in held.items():
        if layout == "binary":
            records = np.concatenate([np.array(labels, np.uint8)[:, None], pixels], axis=1)
            (folder / f"{name}.bin").write_bytes(records.tobytes())
        elif layout == "python 2":
            (folder / name).write_bytes(as_python_2((pixels, labels)))
        else:
            contents = {b"data": pixels, b"labels": labels, b"batch_label": b"a batch"}
            (folder / name).write_bytes(pickle.dumps(contents, protocol=int(layout)))
    return folder


@pytest.mark.parametrize("layout", ["python 2", "2", "3", "4", "binary"])
@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_cifar_gives_what_its_batches_hold(tmp_path: Path, layout: str, split: Any) -> None:
    held = batches()
    assert is_cifar10(write(tmp_path / "cifar", held, layout))
    data = load_cifar10(tmp_path / "cifar", split=split)
    names = {"train": NAMES[:5], "test": NAMES[5:], "all": NAMES}[split]
    pixels = np.concatenate([held[name][0] for name in names]).reshape(-1, 3, 32, 32)
    assert np.array_equal(data.images.numpy(), pixels)
    assert data.labels is not None
    assert data.labels.tolist() == [label for name in names for label in held[name][1]]
    assert data.label_names is not None
    assert data.label_names[3] == "cat"


def test_cifar_of_python_2_is_what_python_reads(tmp_path: Path) -> None:
    pixels, labels = batches()["test_batch"]
    read = pickle.loads(as_python_2((pixels, labels)), encoding="bytes")
    assert np.array_equal(read[b"data"], pixels)
    assert read[b"labels"] == labels


class Harm:
    def __reduce__(self) -> Any:
        return os.mkdir, ("harm",)


@pytest.mark.parametrize(
    "value", [Harm(), {b"data": Harm()}, np.zeros(3, object), RNG], ids=["call", "in", "object", "rng"]
)
def test_cifar_runs_nothing_of_a_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "cifar", batches(), "2")
    (tmp_path / "cifar/data_batch_3").write_bytes(pickle.dumps(value))
    with pytest.raises(ValueError, match="data_batch_3: cannot be read as a batch of CIFAR-10"):
        load_cifar10(tmp_path / "cifar")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("layout", ["python 2", "4", "binary"])
@pytest.mark.parametrize("kept", [0, 1, 3000, -1])
def test_cifar_names_a_batch_that_is_cut_off(tmp_path: Path, layout: str, kept: int) -> None:
    folder = write(tmp_path / "cifar", batches(), layout)
    path = folder / ("data_batch_4.bin" if layout == "binary" else "data_batch_4")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"data_batch_4.*cut off"):
        load_cifar10(folder)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ([1, 2], "is a dictionary, got list"),
        ({b"data": np.zeros((2, 3072), np.uint8)}, "has 'data'"),
        ({b"data": np.zeros((2, 3071), np.uint8), b"labels": [1, 2]}, "has 'data'"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}, "has 'data'"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 10]}, r"labels must be in 0\.\.9, got 1\.\.10"),
        ({b"data": np.zeros((2, 3072), np.float32), b"labels": [1, 2]}, "not of bytes"),
        ({b"data": [[0] * 3072] * 2, b"labels": [1, 2]}, "has 'data'"),
    ],
    ids=str,
)
def test_cifar_says_what_a_batch_lacks(tmp_path: Path, held: Any, message: str) -> None:
    folder = write(tmp_path / "cifar", batches(), "2")
    (folder / "data_batch_2").write_bytes(pickle.dumps(held, protocol=2))
    with pytest.raises(ValueError, match=f"data_batch_2: .*{message}"):
        load_cifar10(folder)


def test_cifar_names_a_batch_that_is_missing(tmp_path: Path) -> None:
    folder = write(tmp_path / "cifar", batches(), "2")
    (folder / "data_batch_5").unlink()
    with pytest.raises(ValueError, match="data_batch_5: cannot be read: No such file"):
        load_cifar10(folder)
    assert len(load_cifar10(folder, split="test")) == 7
    with pytest.raises(ValueError, match="split must be"):
        load_cifar10(folder, split="val")  # type: ignore[arg-type]
