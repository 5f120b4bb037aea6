"""`fastdiff sample`: what it writes, and one line for whatever is wrong."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff import samplers
from fastdiff.pipeline import Pipeline
from support.command_line import fails, run, small_model, works


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
    assert sorted(path.name for path in (tmp_path / "folder").glob("*.png")) == [
        "000007.png",
        "000008.png",
        "000009.png",
    ]


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


def test_sample_takes_a_precision(lively_model, tmp_path):
    options = ("sample", lively_model, "--num", 2, "--sampler", "ddpm", "--steps", 4)
    found = {}
    for precision in ("fast", "bfloat16"):
        works(*options, "--precision", precision, "--out", tmp_path / f"{precision}.npy")
        found[precision] = np.load(tmp_path / f"{precision}.npy")
    assert 0 < np.abs(found["fast"] - found["bfloat16"]).max() < 0.5
    assert "--precision must be 'fast', 'strict' or 'bfloat16', got 'int8'" in fails(*options, "--precision", "int8")


def test_sample_takes_a_choice_of_memory(lively_model, tmp_path, monkeypatch):
    chosen = []
    own = Pipeline.sample

    def watched(pipe, *arguments, **options):
        chosen.append(pipe.memory)
        return own(pipe, *arguments, **options)

    monkeypatch.setattr(Pipeline, "sample", watched)
    options = ("sample", lively_model, "--num", 2, "--sampler", "ddpm", "--steps", 4)
    works(*options, "--memory", "low", "--out", tmp_path / "folder")
    assert set(chosen) == {"low"}
    assert json.loads((tmp_path / "folder" / ".fastdiff-sample.json").read_text())["memory"] == "low"
    assert "--memory must be 'normal' or 'low', got 'tiny'" in fails(*options, "--memory", "tiny")


# An untrained network's samples run away where nothing clips them.
@pytest.mark.filterwarnings("ignore:samples of 'ddim':RuntimeWarning")
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
        (["--sampler", "dimm"], "unknown --sampler 'dimm': did you mean 'ddim'"),
        (["--steps", "99"], "from 1 to 8"),
        (["--option", "etta=1"], "unknown key 'etta' in sampler 'ddim': did you mean 'eta'"),
        (["--option", "eta"], "--option takes name=value"),
        (["--option", "eta=2"], "eta must be in [0, 1]"),
        (["--out", "x.jpg"], "--out takes a .png, a .npz, a .npy or a folder"),
        (["--label", "1"], "no classes"),
        (["--weights", "ema"], "holds 'raw' weights only"),
        (["--device", "abacus"], "unknown --device 'abacus'"),
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


def _archive(model, path, *options):
    works("sample", model, "--steps", 2, "--out", path, *options)
    return np.load(path)["arr_0"] if path.suffix == ".npz" else np.load(path)


@pytest.fixture
def never_sampled(monkeypatch):
    """Fails where a network is evaluated."""

    def refuse(*arguments, **options):
        raise AssertionError("sampled first")

    monkeypatch.setattr(Pipeline, "sample", refuse)


@pytest.mark.parametrize("suffix", ["png", "npz", "npy"])
def test_sample_writes_over_nothing_unasked(model, tmp_path, never_sampled, suffix):
    out = tmp_path / f"mine.{suffix}"
    out.write_bytes(b"mine")
    assert "exists already: choose another name, or give --overwrite" in fails("sample", model, "--out", out)
    assert out.read_bytes() == b"mine"


def test_sample_overwrites_a_file_where_it_is_told_to(model, tmp_path):
    out = tmp_path / "x.npz"
    out.write_bytes(b"mine")
    assert _archive(model, out, "--num", 2, "--overwrite").shape == (2, 16, 16, 3)


def test_sample_refuses_places_that_cannot_be_written(model, tmp_path, never_sampled):
    (tmp_path / "x.png").mkdir()
    assert "is a folder" in fails("sample", model, "--out", tmp_path / "x.png")
    (tmp_path / "file").write_text("")
    assert "cannot write to" in fails("sample", model, "--out", tmp_path / "file" / "x.png")
    assert "cannot write to" in fails("sample", model, "--out", tmp_path / "file" / "folder")


@pytest.mark.parametrize(
    ("name", "channels", "levels"),
    [
        ("x.png", 2, 256),
        ("folder", 2, 256),
        ("x.png", 1, 65536),
        ("x.npz", 1, 65536),
        ("folder", 1, 65536),
    ],
)
def test_sample_refuses_formats_that_cannot_hold_the_images(tmp_path, never_sampled, name, channels, levels):
    model = small_model(tmp_path / "model", channels=channels, scaling=levels)
    assert "--out NAME.npy keeps them" in fails("sample", model, "--out", tmp_path / name)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["x.png", "x.npz", "folder"])
def test_sample_writes_four_channels(tmp_path, name):
    model = small_model(tmp_path / "model", channels=4)
    works("sample", model, "--num", 2, "--steps", 2, "--out", tmp_path / name)
    if name == "x.npz":
        assert np.load(tmp_path / name)["arr_0"].shape == (2, 16, 16, 4)
    elif name == "folder":
        with Image.open(tmp_path / name / "000001.png") as picture:
            assert (picture.mode, picture.size) == ("RGBA", (16, 16))
    else:
        assert (tmp_path / name).stat().st_size > 0


def test_sample_keeps_any_channels_as_floats(tmp_path):
    model = small_model(tmp_path / "model", channels=4)
    found = _archive(model, tmp_path / "x.npy", "--num", 3)
    expected = Pipeline.from_pretrained(model).sample(3, steps=2)
    assert found.dtype == np.float32
    assert np.array_equal(found, expected.numpy())


def _folder(path):
    return {file.name: file.read_bytes() for file in sorted(path.glob("*.png"))}


def test_a_stopped_folder_is_gone_on_with(model, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ["--num", 7, "--steps", 2, "--batch-size", 2]
    works("sample", model, *options, "--out", whole)
    sample, calls = Pipeline.sample, []

    def stop(self, num, **others):
        calls.append(list(others["sample_ids"]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return sample(self, num, **others)

    monkeypatch.setattr(Pipeline, "sample", stop)
    result = run("sample", model, *options, "--out", parts)
    assert result.exit_code == 130
    assert "4 of 7 images are in" in result.stderr
    assert sorted(_folder(parts)) == [f"{i:06d}.png" for i in range(4)]
    # One in the middle is gone as well, and a process that is no more left a part of a file.
    (parts / "000001.png").unlink()
    (parts / f".000004.png.{2**22 + 1}.0123abcd.partial").write_bytes(b"half")
    (parts / f".000005.png.{os.getpid()}.0123abcd.partial").write_bytes(b"being written")
    assert "3 of 7 images are in" in works("sample", model, *options, "--out", parts)
    assert calls[3:] == [[1, 4], [5, 6]]
    assert [path.name for path in parts.glob(".*.partial")] == [f".000005.png.{os.getpid()}.0123abcd.partial"]
    assert _folder(parts) == _folder(whole)
    # What is there is not made again, and more can be added.
    works("sample", model, "--num", 2, "--steps", 2, "--start-id", 6, "--out", parts)
    assert calls[5:] == [[7]]


@pytest.mark.parametrize(
    "options",
    [
        ["--seed", 1],
        ["--steps", 3],
        ["--sampler", "ddpm"],
        ["--option", "eta=0.5"],
        ["--label", "1,2"],
        ["--start-id", 1],
    ],
    ids=lambda options: options[0],
)
def test_a_folder_of_other_samples_is_refused(labelled_model, tmp_path, options):
    """A start that is no multiple of the labels gives each number another label."""
    out = tmp_path / "folder"
    works("sample", labelled_model, "--num", 2, "--steps", 2, "--out", out)
    before = _folder(out)
    arguments = ["sample", labelled_model, "--num", 2, *([] if "--steps" in options else ["--steps", 2]), *options]
    assert "are not samples of this model with these settings" in fails(*arguments, "--out", out)
    assert _folder(out) == before
    works(*arguments, "--out", out, "--overwrite")
    assert len(_folder(out)) == 2


def _stop_after(monkeypatch, num):
    """Ctrl-C at the start of a batch, after so many."""
    sample, calls = Pipeline.sample, []

    def stopping(*arguments, **options):
        calls.append(1)
        if len(calls) > num:
            raise KeyboardInterrupt
        return sample(*arguments, **options)

    monkeypatch.setattr(Pipeline, "sample", stopping)
    return calls


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.png"])
def test_a_stopped_file_is_gone_on_with(labelled_model, tmp_path, monkeypatch, name):
    """In batches of another size, and for more images; labels go on as well."""
    command = ["sample", labelled_model, "--steps", 2, "--label", "2,0,1", "--out"]
    works(*command, tmp_path / "whole" / name, "--num", 9)
    with monkeypatch.context() as patch:
        _stop_after(patch, 2)
        result = run(*command, tmp_path / name, "--num", 7, "--batch-size", 2)
    assert result.exit_code == 130
    assert "4 of 7 images are in" in result.stderr
    assert not (tmp_path / name).exists()
    # Another command at the same name has nothing to do with it.
    with monkeypatch.context() as patch:
        _stop_after(patch, 1)
        assert (
            "1 of 2 images are in" in run(*command, tmp_path / name, "--seed", 1, "--num", 2, "--batch-size", 1).stderr
        )
    with monkeypatch.context() as patch:
        calls = _stop_after(patch, 99)
        assert "4 of 9 images were sampled before" in works(*command, tmp_path / name, "--num", 9, "--batch-size", 3)
    assert len(calls) == 2
    ours, theirs = ((folder / name).read_bytes() for folder in (tmp_path, tmp_path / "whole"))
    if name == "x.npz":
        ours, theirs = (np.load(folder / name) for folder in (tmp_path, tmp_path / "whole"))
        assert ours["arr_1"].tolist() == [2, 0, 1] * 3
        ours, theirs = ours["arr_0"].tobytes(), theirs["arr_0"].tobytes()
    assert ours == theirs
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole", name]


def test_a_damaged_part_is_made_again(model, tmp_path, monkeypatch):
    command = ["sample", model, "--steps", 2, "--num", 3, "--batch-size", 1, "--out", tmp_path / "x.npy"]
    with monkeypatch.context() as patch:
        _stop_after(patch, 2)
        run(*command)
    [folder] = tmp_path.glob(".x.npy.*.parts")
    (folder / "1-1.npy").write_bytes(b"\x93NUMPY")
    assert "1-1.npy was damaged and is deleted; the same command samples it again" in fails(*command)
    works(*command)
    assert np.load(tmp_path / "x.npy").shape == (3, 3, 16, 16)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_a_folder_with_other_files_is_never_cleared(model, tmp_path, never_sampled):
    out = tmp_path / "folder"
    out.mkdir()
    (out / "000000.png").write_bytes(b"someone's")
    assert "are not samples of this model" in fails("sample", model, "--out", out)
    (out / "notes.txt").write_text("mine")
    for more in ([], ["--overwrite"]):
        assert "holds 'notes.txt', which is no sample" in fails("sample", model, "--out", out, *more)
    assert (out / "000000.png").read_bytes() == b"someone's"


def test_sample_takes_a_table_from_a_file(model, tmp_path):
    pipe = Pipeline.from_pretrained(model)
    table = samplers.build("dpmpp", pipe.diffusion, 3)
    (tmp_path / "t.json").write_text(table.to_json())
    works("sample", model, "--num", 2, "--table", tmp_path / "t.json", "--out", tmp_path / "x.npy")
    assert np.array_equal(np.load(tmp_path / "x.npy"), pipe.sample(2, sampler=table).numpy())
    assert "leave out --sampler" in fails("sample", model, "--table", tmp_path / "t.json", "--steps", 3)
    for text in ("{", "[]", '{"format": 1, "columns": {"t": 3}}', "[" * 100_000):
        (tmp_path / "bad.json").write_text(text)
        assert "bad.json" in fails("sample", model, "--table", tmp_path / "bad.json")
    assert "No such file" in fails("sample", model, "--table", tmp_path / "missing.json")


@pytest.fixture(scope="session")
def named_model(tmp_path_factory):
    """Two classes by name and a null class."""
    folder = small_model(tmp_path_factory.mktemp("models") / "named", num_classes=3)
    config = json.loads((folder / "config.json").read_text())
    config["data"] = {"source": "here", "shape": [3, 16, 16], "classes": ["cat", "dog"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_sample_takes_names_of_classes(named_model, tmp_path):
    works("sample", named_model, "--num", 3, "--steps", 2, "--label", "dog,cat", "--out", tmp_path / "x.npz")
    assert np.load(tmp_path / "x.npz")["arr_1"].tolist() == [1, 0, 1]
    # All, without the null class.
    works("sample", named_model, "--num", 3, "--steps", 2, "--out", tmp_path / "y.npz")
    assert np.load(tmp_path / "y.npz")["arr_1"].tolist() == [0, 1, 0]
    assert "no class is called 'dgo': did you mean 'dog'" in fails("sample", named_model, "--label", "dgo")


def test_sample_guides_towards_the_null_class(named_model, labelled_model, tmp_path):
    found = _archive(named_model, tmp_path / "x.npy", "--num", 2, "--guidance", 3, "--label", "cat")
    pipe = Pipeline.from_pretrained(named_model)
    expected = pipe.sample(2, steps=2, labels=["cat", "cat"], guidance=3.0)
    assert np.array_equal(found, expected.numpy())
    assert "does not say which of its 3 classes is the null one" in fails("sample", labelled_model, "--guidance", 2)
    works(
        "sample",
        labelled_model,
        "--guidance",
        2,
        "--null-label",
        2,
        "--num",
        1,
        "--steps",
        1,
        "--out",
        tmp_path / "y.npy",
    )


@pytest.mark.parametrize("option", ["eta=a", "eta=", "clip=x", "spacing=3", "eta=[1]"])
def test_options_of_a_wrong_type_are_a_sentence(model, option, never_sampled):
    assert option.split("=")[0] in fails("sample", model, "--option", option)


def test_numbers_of_samples_have_an_end(model, never_sampled):
    assert "--start-id and --num count up to" in fails("sample", model, "--start-id", 2**63 - 1, "--num", 2)


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


def test_sample_of_several_seeds_is_each_ones_first_image(model, tmp_path):
    def images(name, *options):
        works("sample", model, "--sampler", "ddpm", "--steps", 3, "--out", tmp_path / name, *options)
        return np.load(tmp_path / name)

    together = images("a.npy", "--seed", "5,2,5")
    alone = [images(f"{seed}.npy", "--seed", seed, "--num", 1) for seed in (5, 2)]
    assert together.shape[0] == 3
    np.testing.assert_array_equal(together, np.concatenate([alone[0], alone[1], alone[0]]))
    works("sample", model, "--steps", 2, "--seed", "5,2", "--out", tmp_path / "folder")
    assert sorted(path.name for path in (tmp_path / "folder").glob("*.png")) == ["000000.png", "000001.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "1,2", "--num", 3], "2 seeds"),
        (["--seed", "1,2", "--start-id", 3], "--start-id goes with a single"),
        (["--seed", "1,b"], "--seed must be whole numbers"),
        (["--seed", "-1"], "--seed must be whole numbers"),
        (["--seed", str(2**64)], "--seed must be whole numbers"),
    ],
)
def test_sample_refuses_seeds_that_do_not_fit(model, tmp_path, options, message):
    assert message in " ".join(fails("sample", model, "--out", tmp_path / "x.npy", *options).split())


def test_sample_refuses_a_table_of_another_process(model, tmp_path):
    file = tmp_path / "t.json"
    works("info", "table", "ddim", "--steps", 3, "--schedule", "linear", "-T", 777, "--json", file)
    assert "another process" in " ".join(fails("sample", model, "--table", file, "--out", tmp_path / "x.npy").split())
    assert not (tmp_path / "x.npy").exists()
