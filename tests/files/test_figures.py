"""The pictures: they are written whole, show what they were given, and refuse what does not fit."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from fastdiff.files import figures

pytest.importorskip("matplotlib")


def _images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _frames(num_frames=6, num_samples=4):
    shape = (num_frames, num_samples, 1, 8, 8)
    return figures.DenoisingFrames(
        list(range(num_frames - 2, -2, -1)),
        [1 - i / (num_frames - 1) for i in range(num_frames)],
        _images(*shape, seed=1),
        _images(*shape, seed=2),
    )


def _assert_is_a_picture(path, least_width=300, least_height=200):
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.shape[1] >= least_width
    assert pixels.shape[0] >= least_height
    assert len(np.unique(pixels)) > 20
    # Nothing runs into the left, right or upper edge.
    assert (pixels[:, 0] == 255).all()
    assert (pixels[:, -1] == 255).all()
    assert (pixels[0] == 255).all()
    assert not list(path.parent.glob(".*partial"))


@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "colour"])
def test_plot_samples_draws_a_grid(tmp_path, channels):
    path = figures.plot_samples(
        tmp_path / "new" / "grid.png",
        _images(30, channels, 8, 8),
        labels=[f"{i % 10} (99%)" for i in range(30)],
        title="title",
        note="note",
    )
    _assert_is_a_picture(path, 900, 300)


def test_plot_samples_shows_the_pixels(tmp_path):
    images = torch.full((1, 3, 2, 2), -1.0)
    images[0, 0] = 1.0
    path = figures.plot_samples(tmp_path / "red.png", images, labels=["red"])
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert (pixels == [255, 0, 0]).all(axis=1).sum() > 5000


def test_plot_samples_needs_a_label_each(tmp_path):
    with pytest.raises(ValueError, match="one per image, got 2 for 3"):
        figures.plot_samples(tmp_path / "grid.png", _images(3, 1, 8, 8), labels=["a", "b"])
    assert list(tmp_path.iterdir()) == []


def test_plot_nearest_draws_blocks(tmp_path):
    path = figures.plot_nearest(
        tmp_path / "nearest.png",
        _images(9, 1, 8, 8),
        _images(9, 3, 1, 8, 8),
        np.arange(27.0).reshape(9, 3),
        groups=[("closest", [4, 2, 1]), ("first", [0, 1])],
        title="title",
        note="note",
    )
    _assert_is_a_picture(path, 700, 350)


def test_plot_nearest_refuses_other_counts(tmp_path):
    with pytest.raises(ValueError, match=r"must be \[9, K\]"):
        figures.plot_nearest(
            tmp_path / "nearest.png", _images(9, 1, 8, 8), _images(9, 3, 1, 8, 8), np.zeros((9, 2)), groups=[("a", [0])]
        )


@pytest.mark.parametrize("labels", [(), ("a", "b", "a very long label", "d")], ids=["bare", "labelled"])
def test_plot_denoising_keeps_labels_inside(tmp_path, labels):
    path = figures.plot_denoising(tmp_path / "denoising.png", _frames(), labels=labels, title="title", note="note")
    _assert_is_a_picture(path, 700, 300)


def test_frames_pick_keeps_the_ends():
    frames = _frames(30)
    picked = frames.pick(5)
    assert len(picked.times) == 5
    assert (picked.times[0], picked.times[-1]) == (frames.times[0], frames.times[-1])
    torch.testing.assert_close(picked.states[-1], frames.states[-1])
    assert len(frames.pick(100).times) == 30


def test_frames_refuse_other_shapes():
    with pytest.raises(ValueError, match="of one shape"):
        figures.DenoisingFrames([0], [0.0], torch.zeros(1, 2, 1, 8, 8), torch.zeros(1, 3, 1, 8, 8))
    with pytest.raises(ValueError, match="one time and one noise"):
        figures.DenoisingFrames([0, 1], [0.0], torch.zeros(1, 2, 1, 8, 8), torch.zeros(1, 2, 1, 8, 8))


@pytest.mark.parametrize("count", [1, 5, 200])
def test_plot_loss_for_short_and_long_runs(tmp_path, count):
    path = figures.plot_loss(tmp_path / "loss.png", np.arange(count) + 1, 1 / (np.arange(count) + 1), title="loss")
    _assert_is_a_picture(path)


def test_plot_loss_refuses_other_lengths(tmp_path):
    with pytest.raises(ValueError, match="lists of one length"):
        figures.plot_loss(tmp_path / "loss.png", [1, 2], [0.5], title="loss")


@pytest.mark.parametrize("terms", [[0.4], [0.4, 0.2, 0.0], list(np.geomspace(1, 1e-6, 100))], ids=len)
def test_plot_bound_for_any_number_of_steps(tmp_path, terms):
    path = figures.plot_bound(tmp_path / "bound.png", terms, title="1.8 bits/dim", note="note")
    _assert_is_a_picture(path)


def test_gif_moves_and_holds_its_end(tmp_path):
    path = figures.write_denoising_gif(tmp_path / "denoising.gif", _frames(6, 4), columns=3, hold_milliseconds=1500)
    with Image.open(path) as animation:
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(animation)]
        assert animation.info["loop"] == 0
        assert min(animation.size) >= 200
    assert len(durations) == 6
    assert durations[-1] == 1500
    assert not list(tmp_path.glob(".*partial"))


def test_a_figure_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    path = figures.plot_loss(tmp_path / "loss.png", [1, 2], [0.5, 0.4], title="loss")
    before = path.read_bytes()

    def full(self, target, **options):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(OSError, match="No space"):
        figures.plot_loss(path, [1, 2], [0.1, 0.1], title="other")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["loss.png"]
