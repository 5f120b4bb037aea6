"""Tests of fastdiff.evaluation.images: the same pixels from whatever they lie in."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from fastdiff.data.opening import DataOptions
from fastdiff.evaluation import Gaussian, ImageSet, open_reference, open_set

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 6, 6, 3), dtype=np.uint8)


def read(images, size=3):
    batches = list(images.batches(size))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert images.num == 7
    assert images.shape == (6, 6, 3)
    return np.concatenate(batches)


def as_folder(path):
    path.mkdir()
    for number, image in enumerate(PIXELS):
        Image.fromarray(image).save(path / f"{number}.png")


def as_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        for number, image in enumerate(PIXELS):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "PNG")
            archive.writestr(f"00000/img{number:08d}.png", file.getvalue())


WRITERS = {
    "a.npz": lambda path: np.savez(path, PIXELS),
    "b.npz": lambda path: np.savez_compressed(path, PIXELS),
    "c.npy": lambda path: np.save(path, PIXELS),
    "d": as_folder,
    "e.zip": as_zip,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_source_has_the_same_pixels(tmp_path, name):
    WRITERS[name](tmp_path / name)
    np.testing.assert_array_equal(read(open_set(tmp_path / name)), PIXELS)
    np.testing.assert_array_equal(read(open_reference(str(tmp_path / name))), PIXELS)


def test_arrays_in_memory_are_read():
    np.testing.assert_array_equal(read(ImageSet.of_array(PIXELS, seed=3)), PIXELS)
    assert ImageSet.of_array(PIXELS, seed=3).about == {"seed": 3}
    for wrong in (PIXELS.astype(np.float32), PIXELS[0], PIXELS[:0]):
        with pytest.raises(ValueError, match="images must be uint8"):
            ImageSet.of_array(wrong)


def test_values_of_few_levels_are_spread_over_eight_bits():
    digits = np.concatenate(list(open_set("digits").batches(500)))
    assert digits.shape[1:] == (8, 8, 1)
    assert len(np.unique(digits)) == 17
    assert (digits.min(), digits.max()) == (0, 255)


def test_pictures_are_made_of_one_size(tmp_path):
    as_folder(tmp_path / "d")
    assert open_set(tmp_path / "d", DataOptions(size=4, channels=1)).shape == (4, 4, 1)


def test_statistics_are_told_from_images(tmp_path):
    np.savez(tmp_path / "s.npz", mu=np.zeros(2), sigma=np.eye(2))
    assert isinstance(open_reference(tmp_path / "s.npz"), Gaussian)
    # ADM's references hold both: the images are taken, for which any network will do.
    np.savez(tmp_path / "adm.npz", arr_0=PIXELS, mu=np.zeros(2), sigma=np.eye(2))
    assert isinstance(open_reference(tmp_path / "adm.npz"), ImageSet)


def test_what_is_no_images_says_so(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"x\.npz"):
        open_reference(tmp_path / "x.npz")
    with pytest.raises(ValueError, match="does not exist"):
        open_set(tmp_path / "missing")
