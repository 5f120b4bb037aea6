"""`fastdiff likelihood`: its terms are the library's, by every method."""

import json

import numpy as np
import pytest
from PIL import Image

from fastdiff.files.checkpoint import load_model
from support.command_line import fails, run, small_model, works
from support.tolerances import FLOAT32_SUM


def test_likelihood_prints_its_terms(model, pictures, tmp_path):
    numbers, figure = tmp_path / "n.json", tmp_path / "bound.png"
    printed = works("likelihood", model, pictures, "--num", 4, "--json", numbers, "--figure", figure)
    found = json.loads(numbers.read_text())
    assert (
        f"{found['bits_per_dim']:.4f} ± {found['standard_error']:.4f} bits/dim (4 images; a pixel has 256 values)"
        in printed
    )
    assert found["bits_per_dim"] == pytest.approx(found["prior"] + found["kl"] + found["decoder"])
    assert len(found["terms"]) == 8
    assert sum(found["terms"]) == pytest.approx(found["kl"] + found["decoder"])
    with Image.open(figure) as picture:
        assert picture.size[0] > 300


def test_likelihood_is_that_of_the_library(model, pictures, tmp_path):
    from fastdiff import likelihood
    from fastdiff.files import data

    works("likelihood", model, pictures, "--json", tmp_path / "n.json", "--batch-size", 7)
    loaded, images = load_model(model), data.load(pictures)
    expected = likelihood.bound(loaded.unet, loaded.diffusion, images.to_model(images.images))
    found = json.loads((tmp_path / "n.json").read_text())
    assert found["bits_per_dim"] == pytest.approx(expected.mean, rel=FLOAT32_SUM)


def test_likelihood_of_continuous_data_is_a_density(tmp_path):
    folder = small_model(tmp_path / "model", scaling=None)
    values = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", values)
    assert "the density of continuous values" in works("likelihood", folder, tmp_path / "x.npy")


def test_likelihood_with_labels_needs_them(labelled_model, pictures, tmp_path):
    assert "no labels" in fails("likelihood", labelled_model, pictures)
    images = np.zeros((3, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.array([0, 1, 2]))
    assert "bits/dim (3 images" in works("likelihood", labelled_model, tmp_path / "x.npz")


def test_likelihood_refuses_other_shapes_and_values(model, tmp_path):
    pytest.importorskip("sklearn", reason="it carries the digits")
    assert "trained on images of 3x16x16 (channels x height x width), digits/test has 1x8x8" in fails(
        "likelihood", model, "digits"
    )
    eight = small_model(tmp_path / "eight", channels=1, size=8)
    assert "pixels of 256 values, those of digits/test have 17" in fails("likelihood", eight, "digits")
    assert "--figure writes a .png" in fails("likelihood", model, "digits", "--figure", "x.jpg")


def test_data_that_cannot_be_read_is_explained(model, pictures, tmp_path):
    assert "does not exist" in fails("likelihood", model, tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    assert "no images in it" in fails("likelihood", model, tmp_path / "empty")
    np.save(tmp_path / "nan.npy", np.full((2, 16, 16, 3), np.nan, dtype=np.float32))
    assert "NaN" in fails("likelihood", model, tmp_path / "nan.npy")
    Image.new("RGB", (9, 16)).save(pictures / "odd.png")
    assert "must have one size" in fails("likelihood", model, pictures)
    (pictures / "odd.png").write_bytes(b"not a picture")
    result = run("likelihood", model, pictures)
    assert result.exit_code == 1
    assert "odd.png: not an image" in result.stderr


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("estimate", ["--option", "target_error=0.5"], "evaluations"),
        ("ode", ["--option", "tolerance=0.05"], "offset of the dequantisation"),
        ("iwae", ["--option", "trajectories=2"], "with one trajectory"),
        ("rate_distortion", [], "RMSE"),
    ],
)
def test_likelihood_by_every_method(model, archive, tmp_path, method, options, said):
    printed = works(
        "likelihood", model, archive, "--layout", "NHWC", "-n", 2, "--method", method, *options, "--json",
        tmp_path / "n.json",
    )  # fmt: skip
    assert said in printed
    found = json.loads((tmp_path / "n.json").read_text())
    assert found["num_images"] == 2
    assert f"{found['bits_per_dim']:.4f}" in printed


def test_likelihood_draws_rate_and_distortion(model, archive, tmp_path):
    works("likelihood", model, archive, "-n", 2, "--method", "rate_distortion", "--figure", tmp_path / "r.png")
    assert (tmp_path / "r.png").is_file()


def test_likelihood_refuses_methods(model, archive):
    assert "unknown --method 'odd'" in fails("likelihood", model, archive, "--method", "odd")
    assert "has no figure" in fails("likelihood", model, archive, "--method", "ode", "--figure", "x.png")
    assert "probes" in fails("likelihood", model, archive, "--method", "ode", "--option", "probes=0")
    assert "unknown key 'porbes'" in fails("likelihood", model, archive, "--method", "ode", "--option", "porbes=2")
