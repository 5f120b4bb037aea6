"""`fastdiff edit` and the methods of `fastdiff likelihood`, on tiny things."""

import numpy as np
import pytest
from PIL import Image

from support.command_line import fails, small_model, works


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return path


def pixels(path):
    with Image.open(path) as image:
        return np.array(image)


def test_edit_vary_at_strength_0_writes_the_picture_itself(model, picture, tmp_path):
    works("edit", "vary", model, picture, "--strength", "0", "--out", tmp_path / "v.png")
    written = pixels(tmp_path / "v.png")
    # A single image is written without enlarging it, in a narrow frame.
    frame = (written.shape[0] - 16) // 2
    assert np.array_equal(written[frame : frame + 16, frame : frame + 16], pixels(picture))
    assert min(pixels(tmp_path / "v_side_by_side.png").shape[:2]) > 60


def test_edit_vary_writes_an_archive_of_all_strengths(model, archive, tmp_path):
    side = tmp_path / "side.png"
    works("edit", "vary", model, archive, "--strength", "0,0.5,1", "-n", 2, "-o", tmp_path / "v.npz", "--picture", side)
    found, given = np.load(tmp_path / "v.npz")["arr_0"], np.load(archive)["arr_0"]
    assert found.shape == (6, 16, 16, 3)
    assert np.array_equal(found[:2], given[:2])
    assert not np.array_equal(found[2:4], given[:2])
    assert side.is_file()


def test_edit_takes_a_precision(lively_model, archive, tmp_path):
    found = {}
    for precision in ("fast", "bfloat16"):
        out = tmp_path / f"{precision}.npy"
        works("edit", "encode", lively_model, archive, "--steps", 4, "--precision", precision, "--out", out)
        found[precision] = np.load(out)
    assert 0 < np.abs(found["fast"] - found["bfloat16"]).max() < 0.5
    assert "--precision must be" in fails("edit", "vary", lively_model, archive, "--precision", "int8")


def test_edit_inpaint_keeps_what_is_known(model, archive, tmp_path):
    works("edit", "inpaint", model, archive, "--hole", "2,3,5,6", "--steps", 4, "--out", tmp_path / "i.npz")
    found, given = np.load(tmp_path / "i.npz")["arr_0"], np.load(archive)["arr_0"]
    known = np.ones((16, 16), bool)
    known[2:7, 3:9] = False
    assert np.array_equal(found[:, known], given[:, known])
    assert not np.array_equal(found[:, ~known], given[:, ~known])
    Image.fromarray(np.where(known, 255, 0).astype(np.uint8)).save(tmp_path / "mask.png")
    works("edit", "inpaint", model, archive, "--mask", tmp_path / "mask.png", "--steps", 4, "-o", tmp_path / "m.npz")
    assert np.array_equal(np.load(tmp_path / "m.npz")["arr_0"], found)


def test_edit_upscale_takes_small_and_large_images(upscaler, tmp_path):
    """Large images are made small first, so that both give the same."""
    small = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    large = small.repeat(4, axis=1).repeat(4, axis=2)
    found = {}
    for name, images in (("small", small), ("large", large)):
        np.savez(tmp_path / f"{name}.npz", images)
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{i}.png")
        for source in (f"{name}.npz", name, f"{name}/0.png"):
            out = tmp_path / f"x_{source.replace('/', '_')}.npz"
            works("edit", "upscale", upscaler, tmp_path / source, "--steps", 3, "--label", 1, "--out", out)
            found[source] = np.load(out)["arr_0"].astype(int)
            assert out.with_name(f"{out.stem}_side_by_side.png").is_file()
    assert found["small"].shape == (3, 16, 16, 3)
    for source, images in found.items():
        # The means of equal values may be off by a rounding.
        assert np.abs(images - found["small"][: len(images)]).max() <= 1, source


def test_edit_upscale_says_what_does_not_fit(model, upscaler, archive, tmp_path):
    assert "was not trained to make large images of small ones" in fails("edit", "upscale", model, archive)
    np.savez(tmp_path / "other.npz", np.zeros((2, 5, 5, 3), np.uint8))
    said = fails("edit", "upscale", upscaler, tmp_path / "other.npz")
    assert "images are 3x16x16 (channels x height x width), small ones 3x4x4, those of" in said
    assert "makes images of other images: fastdiff edit upscale" in fails("sample", upscaler, "-o", tmp_path / "x.png")
    assert "further channels (3) beside those of the noisy" in fails("edit", "vary", upscaler, archive, "--label", 0)


def test_edit_encode_and_decode_come_back(model, archive, tmp_path):
    printed = works("edit", "encode", model, archive, "--steps", 8, "--order", 4, "--out", tmp_path / "z.npz")
    assert "round-trip error" in printed
    latent = np.load(tmp_path / "z.npz")["arr_0"]
    assert latent.shape == (3, 3, 16, 16)
    assert latent.dtype == np.float32
    works("edit", "decode", model, tmp_path / "z.npz", "--steps", 8, "--order", 4, "--out", tmp_path / "x.npz")
    found, given = (np.load(path)["arr_0"].astype(int) for path in (tmp_path / "x.npz", archive))
    assert np.abs(found - given).mean() < 16
    works("edit", "encode", model, archive, "-n", 1, "--exact", "--out", tmp_path / "e.png")


def test_edit_interpolate_goes_from_one_to_the_other(model, picture, archive, tmp_path):
    works("edit", "interpolate", model, picture, archive, "-n", 1, "--level", "0", "--out", tmp_path / "i.npz")
    found = np.load(tmp_path / "i.npz")["arr_0"]
    assert found.shape == (5, 16, 16, 3)
    assert np.array_equal(found[0], pixels(picture))
    assert np.array_equal(found[-1], np.load(archive)["arr_0"][0])


def test_edit_refuses(model, picture, archive, tmp_path):
    assert "does not exist" in fails("edit", "vary", model, tmp_path / "missing.png")
    assert "--strength takes numbers" in fails("edit", "vary", model, picture, "--strength", "much")
    assert "strength must be in [0, 1]" in fails("edit", "vary", model, picture, "--strength", "2")
    assert "--out takes" in fails("edit", "vary", model, picture, "--out", tmp_path / "x.jpg")
    assert "either --mask or --hole" in fails("edit", "inpaint", model, picture)
    assert "--hole must lie" in fails("edit", "inpaint", model, picture, "--hole", "0,0,17,2")
    assert "one shape" in fails("edit", "interpolate", model, picture, archive)
    Image.new("L", (5, 5)).save(tmp_path / "mask.png")
    assert "the mask must have" in fails("edit", "inpaint", model, picture, "--mask", tmp_path / "mask.png")
    assert "slerp" in fails("edit", "interpolate", model, picture, picture, "--mode", "slurp")
    np.savez(tmp_path / "grey.npz", np.zeros((2, 16, 16), np.uint8))
    assert "the model's images are 3x16x16" in fails("edit", "vary", model, tmp_path / "grey.npz")


def test_edit_writes_over_nothing_unasked(model, picture, tmp_path):
    out, beside = tmp_path / "x.png", tmp_path / "x_side_by_side.png"
    command = ["edit", "vary", model, picture, "--strength", 0, "--out", out]
    for path in (out, beside):
        path.write_bytes(b"mine")
        assert "exists already" in fails(*command)
        assert path.read_bytes() == b"mine"
        path.unlink()
    works(*command)
    works(*command, "--overwrite")


def test_edit_refuses_pictures_of_two_channels_and_writes_their_floats(tmp_path):
    model = small_model(tmp_path / "model", channels=2)
    np.save(tmp_path / "z.npy", np.zeros((2, 2, 16, 16), np.float32))
    command = ["edit", "decode", model, tmp_path / "z.npy", "--steps", 2]
    assert "a .png holds 1, 3 or 4 channels" in fails(*command, "--out", tmp_path / "x.png")
    works(*command, "--out", tmp_path / "x.npy")
    assert np.load(tmp_path / "x.npy").shape == (2, 2, 16, 16)


def test_edit_refuses_latents_and_holes_that_are_none(model, picture, tmp_path):
    np.savez(tmp_path / "z.npz", np.array(["a", "b"]))
    assert "expected the floats that encode wrote" in fails("edit", "decode", model, tmp_path / "z.npz")
    for hole in ("inf,0,1,1", "nan,0,1,1", "0.5,0,1,1"):
        assert "--hole takes top,left,height,width" in fails("edit", "inpaint", model, picture, "--hole", hole)
