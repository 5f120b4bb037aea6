"""`fastdiff sample`: what it writes, and one line for whatever is wrong."""

import numpy as np
import pytest
import torch
from PIL import Image

from support.command_line import fails, small_model, works


def test_sample_writes_a_grid(model, tmp_path):
    out = tmp_path / "new" / "grid.png"
    assert str(out) in works("sample", model, "--num", 5, "--steps", 4, "--out", out).replace("\n", "")
    with Image.open(out) as picture:
        assert picture.size[0] > 100


def test_sample_writes_an_archive(model, tmp_path):
    works("sample", model, "--num", 5, "--steps", 4, "--out", tmp_path / "x.npz")
    images = np.load(tmp_path / "x.npz")["arr_0"]
    assert images.shape == (5, 16, 16, 3)
    assert images.dtype == np.uint8
    assert np.ptp(images) > 0


def test_sample_writes_a_folder_named_by_sample_id(model, tmp_path):
    works("sample", model, "--num", 3, "--steps", 2, "--start-id", 7, "--out", tmp_path / "folder")
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["000007.png", "000008.png", "000009.png"]


def test_sample_depends_on_seed_and_id_alone(model, tmp_path):
    def archive(name, *options):
        works("sample", model, "--sampler", "ddpm", "--out", tmp_path / name, *options)
        return np.load(tmp_path / name)["arr_0"].astype(int)

    whole = archive("a.npz", "--num", 6)
    split = archive("b.npz", "--num", 6, "--batch-size", 4)
    tail = archive("c.npz", "--num", 2, "--start-id", 4)
    other = archive("d.npz", "--num", 6, "--seed", 1)
    assert np.abs(whole - split).max() <= 1
    assert np.abs(whole[4:] - tail).max() <= 1
    assert np.abs(whole - other).max() > 10


def test_sample_takes_sampler_options(model, tmp_path):
    works(
        "sample",
        model,
        "--num",
        1,
        "--steps",
        3,
        "--option",
        "eta=0.5",
        "--option",
        "clip=none",
        "--out",
        tmp_path / "x.npz",
    )


def test_sample_with_labels(labelled_model, tmp_path):
    works("sample", labelled_model, "--num", 5, "--steps", 2, "--out", tmp_path / "x.npz")
    assert np.load(tmp_path / "x.npz")["arr_1"].tolist() == [0, 1, 2, 0, 1]
    works("sample", labelled_model, "--num", 3, "--steps", 2, "--label", "2,0", "--out", tmp_path / "y.npz")
    assert np.load(tmp_path / "y.npz")["arr_1"].tolist() == [2, 0, 2]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--sampler", "dimm"], "unknown sampler 'dimm': did you mean 'ddim'"),
        (["--steps", "99"], "from 1 to 8"),
        (["--option", "etta=1"], "unknown key 'etta' in sampler 'ddim': did you mean 'eta'"),
        (["--option", "eta"], "an option is name=value"),
        (["--option", "eta=2"], "eta must be in [0, 1]"),
        (["--out", "x.jpg"], "--out takes a .png, a .npz or a folder"),
        (["--label", "1"], "no classes"),
        (["--weights", "ema"], "holds 'raw' weights only"),
        (["--device", "abacus"], "unknown device 'abacus'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_sample_refuses(model, options, expected):
    assert expected in fails("sample", model, *options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_sample_refuses_a_gpu_that_is_not_there(model):
    assert "no GPU" in fails("sample", model, "--device", "cuda")


@pytest.mark.parametrize("label", ["3", "-1", "cat"])
def test_sample_refuses_other_labels(labelled_model, label):
    assert "label" in fails("sample", labelled_model, "--label", label)


def test_sample_refuses_a_file_as_folder(model, tmp_path):
    (tmp_path / "taken").write_text("")
    assert "is a file" in fails("sample", model, "--out", tmp_path / "taken")


def _spoil(folder, name, change):
    path = folder / name
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda m: _spoil(m, "model.safetensors", lambda data: data[: len(data) // 2]), "truncated or damaged"),
        (lambda m: _spoil(m, "config.json", lambda data: data[:20]), "not JSON"),
        (lambda m: _spoil(m, "config.json", lambda data: b'{"a": 1}'), "not written by fastdiff"),
        (lambda m: (m / "config.json").unlink(), "not a fastdiff model folder"),
        (lambda m: (m / "model.safetensors").unlink(), "cannot read"),
    ],
    ids=["truncated", "half-config", "foreign-config", "no-config", "no-weights"],
)
def test_damaged_models_are_explained(tmp_path, damage, expected):
    folder = small_model(tmp_path / "model")
    damage(folder)
    assert expected in fails("sample", folder)


def test_foreign_checkpoints_are_explained(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "model.pt")
    assert "is not a network that fastdiff knows" in fails("sample", tmp_path / "model.pt")
    assert "does not exist" in fails("likelihood", tmp_path / "missing", "digits")
