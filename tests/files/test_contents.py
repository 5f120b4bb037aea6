"""Checksums, types and sizes of what a model's files hold."""

import os
import random
import struct
import zlib

import pytest
import torch

from fastdiff.files.checkpoint import latest_checkpoint, load_model, read_config
from fastdiff.files.contents import check_data, check_room, check_sum, checksum, checksum_of_tensors, describing
from support.checkpoints import CONFIG, save_step


def flip_a_bit(path, seed):
    """Another bit of the tensors of a safetensors file."""
    draw = random.Random(seed)
    content = bytearray(path.read_bytes())
    start = 8 + struct.unpack("<Q", content[:8])[0]
    content[draw.randrange(start, len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def test_checksum_is_the_crc_of_all_bytes(tmp_path):
    for size in (0, 1, (1 << 20) - 1, (1 << 20) + 1):
        content = os.urandom(size)
        (tmp_path / "a").write_bytes(content)
        assert checksum(tmp_path / "a") == f"crc32:{zlib.crc32(content):08x}"


def test_checksum_of_tensors_is_of_names_types_shapes_and_values():
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(3, dtype=torch.bfloat16), "c": torch.zeros(0)}
    expected = b"a torch.bfloat16 []\n" + struct.pack("<H", 0x4040)
    expected += b"b torch.float32 [2, 3]\n" + struct.pack("<6f", *range(6)) + b"c torch.float32 [0]\n"
    assert checksum_of_tensors(tensors) == f"crc32:{zlib.crc32(expected):08x}"
    strided = tensors | {"b": tensors["b"].t().contiguous().t()}
    assert checksum_of_tensors(strided) == checksum_of_tensors(tensors)
    for other in ({"b": tensors["b"].t()}, {"b": tensors["b"] + 1}, {"c": torch.zeros(1)}):
        assert checksum_of_tensors(tensors | other) != checksum_of_tensors(tensors)


def test_check_sum_names_the_file_and_passes_older_ones(tmp_path):
    path, other = tmp_path / "a", tmp_path / "config.json"
    path.write_bytes(b"123456789")
    # The check value of CRC-32 (ISO-HDLC).
    check_sum(path, "crc32:cbf43926", said_by=other)
    check_sum(path, None, said_by=other)
    with pytest.raises(
        ValueError, match=r"a is damaged: its checksum is crc32:cbf43926, and config\.json says crc32:0"
    ):
        check_sum(path, "crc32:00000000", said_by=other)
    for wrong in (3, "crc32:xyz", ["crc32:cbf43926"], "sha1:cbf43926"):
        with pytest.raises(ValueError, match="a checksum must be"):
            check_sum(path, wrong, said_by=other)
    with pytest.raises(ValueError, match=r"cannot read .*missing"):
        check_sum(tmp_path / "missing", "crc32:cbf43926", said_by=other)


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors"])
def test_a_flipped_bit_is_noticed_and_an_earlier_checkpoint_taken(tmp_path, name):
    save_step(tmp_path, 1)
    folder = save_step(tmp_path, 2)
    assert latest_checkpoint(tmp_path) == folder
    whole = (folder / name).read_bytes()
    for seed in range(20):
        flip_a_bit(folder / name, seed)
        with pytest.raises(ValueError, match=f"{name} is damaged: its checksum"):
            load_model(folder, weights="ema" if name.startswith("model") else "raw")
        with pytest.warns(UserWarning, match=f"passing over an incomplete checkpoint: .*{name} is damaged"):
            assert load_model(tmp_path).metadata["step"] == 1
        (folder / name).write_bytes(whole)
    assert load_model(folder).metadata["step"] == 2


def test_a_model_without_checksums_loads(tmp_path):
    folder = save_step(tmp_path, 1)
    path = folder / "config.json"
    lines = path.read_text().splitlines()
    kept = [line for line in lines if '"checksums"' not in line]
    assert len(kept) == len(lines) - 1
    kept[-2] = kept[-2].removesuffix(",")
    path.write_text("\n".join(kept))
    assert read_config(folder)["checksums"] == {}
    assert torch.isfinite(load_model(folder).unet.state_dict()["conv_out.weight"]).all()
    assert latest_checkpoint(tmp_path) == folder


@pytest.mark.parametrize(
    "data", [3, [], "x", {"shape": 3}, {"shape": [1, 8]}, {"shape": [1, 8, 0]}, {"shape": [1, 8, "8"]}]
)
def test_check_data_takes_a_shape_of_three(data):
    with pytest.raises(ValueError, match="data"):
        check_data(data)


def test_check_data_takes_none_and_what_else_is_said():
    check_data(None)
    check_data({"source": "digits"})
    check_data({"shape": [1, 8, 16]})


def test_check_room_counts_blocks():
    check_room(CONFIG, 100)
    with pytest.raises(ValueError, match="residual blocks, the file 0 tensors"):
        check_room(CONFIG, 0)


@pytest.mark.parametrize(
    "error", [TypeError("a"), KeyError("a"), OverflowError("a"), ZeroDivisionError("a"), MemoryError()]
)
def test_describing_names_file_and_key(tmp_path, error):
    with (
        pytest.raises(ValueError, match=r"config\.json: .*\(under 'unet'\)"),
        describing(tmp_path / "config.json", "unet"),
    ):
        raise error
