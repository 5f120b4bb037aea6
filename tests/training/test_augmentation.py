"""EDM's augmentation: the transforms by hand, how often they are drawn, and runs that are told of them."""

import math

import numpy as np
import pytest
import torch

from fastdiff.training.augmentation import NUM_LABELS, Transforms
from fastdiff.training.batches import Batches
from fastdiff.training.config import TrainConfig
from fastdiff.training.trainer import Trainer
from support.tolerances import FLOAT64
from support.training_runs import CONFIG, SIMPLE, digests, images, network

NOTHING = {
    "mirrored": [[0.0, 0.0]],
    "scale": [0.0],
    "angle": [0.0],
    "stretch": [0.0],
    "axes": [0.0],
    "moves": [[0.0, 0.0]],
}
# Bicubic values of a few float32 products.
ROUNDING = 1e-5


def transforms(**changes):
    return Transforms(**{name: np.array(value) for name, value in (NOTHING | changes).items()})


def picture(height=8, width=8):
    return torch.rand(1, 2, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_augmentation_that_does_nothing_leaves_the_bits():
    x = picture()
    assert torch.equal(transforms().of(x), x)
    assert not transforms().labels().any()


@pytest.mark.parametrize(
    ("changes", "expected", "labels"),
    [
        ({"mirrored": [[1.0, 0.0]]}, lambda x: x.flip(-1), {0: 1}),
        ({"mirrored": [[1.0, 1.0]]}, lambda x: x.flip(-1).flip(-2), {0: 1, 1: 1}),
        ({"angle": [math.pi]}, lambda x: x.flip(-1).flip(-2), {3: -2}),
        # Their code's sense: what is above comes to the right.
        ({"angle": [-math.pi / 2]}, lambda x: x.rot90(-1, (-2, -1)), {3: -1, 4: -1}),
        ({"stretch": [1.5], "axes": [0.7]}, None, {5: 1.5 * math.cos(0.7), 6: 1.5 * math.sin(0.7)}),
        ({"scale": [-0.5]}, None, {2: -0.5}),
        # A whole pixel of 8 is a standard deviation.
        ({"moves": [[1.0, 0.0]]}, lambda x: torch.cat([x[..., :1], x[..., :-1]], dim=-1), {7: 1}),
        ({"moves": [[0.0, -1.0]]}, lambda x: torch.cat([x[..., 1:, :], x[..., -1:, :]], dim=-2), {8: -1}),
    ],
)
def test_augmentation_is_what_its_labels_say(changes, expected, labels):
    found = transforms(**changes).labels()[0]
    told = np.zeros(NUM_LABELS)
    for place, value in labels.items():
        told[place] = value
    np.testing.assert_allclose(found, told, atol=FLOAT64)
    x = picture()
    result = transforms(**changes).of(x)
    assert result.is_contiguous(memory_format=torch.channels_last)
    if expected is not None:
        torch.testing.assert_close(result, expected(x).contiguous(), rtol=0, atol=ROUNDING)


def test_augmentation_moves_a_slope_by_its_matrix():
    """Each pixel shows the value at its source, to a twentieth of a pixel in x and y: PyTorch's cubic has a = -0.75."""
    height, width = 12, 20
    y, x = torch.meshgrid(torch.arange(height) - 5.5, torch.arange(width) - 9.5, indexing="ij")
    slope = (0.03 * x + 0.05 * y)[None, None].float()
    scale, angle, stretch, axes, moves = 0.4, 0.3, -0.8, 0.9, (0.2, -0.3)
    found = transforms(scale=[scale], angle=[angle], stretch=[stretch], axes=[axes], moves=[moves]).of(slope)[0, 0]
    # Forwards, as EDM's code does it: scaled, rotated by -angle, stretched along axes turned by -axes, moved.
    turn = lambda a: np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])  # noqa: E731
    s = 2 ** (0.2 * stretch)
    forward = turn(-axes) @ np.diag([s, 1 / s]) @ turn(axes) @ turn(-angle) * 2 ** (0.2 * scale)
    shift = np.array([0.125 * width * moves[0], 0.125 * height * moves[1]])
    inside = 0
    for row in range(height):
        for column in range(width):
            source = np.linalg.solve(forward, np.array([column - 9.5, row - 5.5]) - shift)
            if abs(source[0]) < 7 and abs(source[1]) < 3.5:
                inside += 1
                # 0.05 (0.03 + 0.05)
                assert float(found[row, column]) == pytest.approx(0.03 * source[0] + 0.05 * source[1], abs=4e-3)
    assert inside > 50


def test_augmentation_is_drawn_as_often_as_asked():
    places = np.arange(20000)
    labels = Transforms.drawn(0.12, 3, 7, places).labels()
    # Six deviations of a share of 20,000 draws.
    for column, share in ((0, 0.5), (1, 0.06), (2, 0.12), (3, 0.12), (5, 0.12), (7, 0.12), (8, 0.12)):
        assert abs((labels[:, column] != 0).mean() - share) < 6 * math.sqrt(share * (1 - share) / 20000)
    drawn = labels[labels[:, 2] != 0, 2]
    assert abs(drawn.std() - 1) < 0.09
    assert abs(drawn.mean()) < 0.13
    # Both moves are drawn, and are of one image without being the same.
    moves = labels[labels[:, 7] != 0, 7:]
    assert abs(np.corrcoef(moves.T)[0, 1]) < 0.13
    some = Transforms.drawn(0.12, 3, 7, places[[5, 17, 4]]).labels()
    np.testing.assert_array_equal(some, labels[[5, 17, 4]])
    assert not np.array_equal(Transforms.drawn(0.12, 3, 8, places[:50]).labels(), labels[:50])


SETTINGS = {"augment": 0.5, "flip": False}


def trainer(folder, augment_channels=9, **changes):
    config = TrainConfig(**{**CONFIG.to_dict(), **SETTINGS, **changes})
    return Trainer(network(augment_channels=augment_channels), SIMPLE, images(), config, folder)


def test_augmented_batches_hold_what_their_labels_say(tmp_path):
    config = TrainConfig(**{**CONFIG.to_dict(), **SETTINGS})
    plain = TrainConfig(**{**CONFIG.to_dict(), "flip": False})
    data = images()
    device = torch.device("cpu")
    places = np.arange(config.batch_size)
    batch = Batches(data, config, None, device).at(4, places)
    stored = Batches(data, plain, None, device).at(4, places)
    expected = Transforms.drawn(0.5, config.seed, 4, places)
    assert torch.equal(batch.images, expected.of(data.scaling.to_model(stored.images)))
    assert torch.equal(batch.augment, torch.from_numpy(expected.labels()).float())
    assert stored.augment is None
    # A part of the batch is a part of the same.
    part = Batches(data, config, None, device).at(4, places[3:])
    assert torch.equal(part.images, batch.images[3:])
    assert torch.equal(part.augment, batch.augment[3:])


def test_augmented_run_is_told_and_resumes_to_the_bit(tmp_path):
    whole = trainer(tmp_path / "whole")
    before = whole.unet.augment_emb.weight.clone()
    result = whole.run()
    assert not torch.equal(whole.unet.augment_emb.weight, before)
    first = trainer(tmp_path / "parts").run(until=2)
    second = trainer(tmp_path / "parts").run()
    assert (first.step, second.resumed_from) == (2, 2)
    assert digests(second.checkpoint) == digests(result.checkpoint)
    # Another share is another run.
    plain = trainer(tmp_path / "plain", augment=0.0)
    plain.run()
    assert not torch.equal(plain.unet.conv_out.weight, whole.unet.conv_out.weight)


def test_augmentation_refuses_what_cannot_be_told(tmp_path):
    with pytest.raises(ValueError, match="augment tells the network 9 labels, and it takes none: give it"):
        trainer(tmp_path, augment_channels=None)
    with pytest.raises(ValueError, match="augment must be a number in"):
        TrainConfig(steps=1, augment=1.0)
    with pytest.raises(ValueError, match="no probability for: take loss 'simple' or 'huber'"):
        TrainConfig(steps=1, augment=0.1, loss="vlb")
