"""Images beside the noisy one: what a network sees of them, in training and in sampling."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastdiff.nets.conditions import Concatenated, ImageCondition
from support.tolerances import FLOAT32

PLACES = np.arange(6)


def images(num=6, channels=2, height=8, width=12):
    return torch.rand(num, channels, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_low_res_is_what_openai_trains_on():
    """Area down, bilinear up, as their `super_res_train.py` and `SuperResModel` do."""
    x0, condition = images(), ImageCondition("low_res:4")
    small = F.interpolate(x0, (2, 3), mode="area")
    torch.testing.assert_close(condition.reduced(x0), small, rtol=0, atol=FLOAT32)
    found = condition.of_training(x0, 0, 0, PLACES)
    torch.testing.assert_close(found, F.interpolate(small, (8, 12), mode="bilinear"), rtol=0, atol=FLOAT32)
    assert found.shape[1] == condition.channels(2) == 2
    # A plain mean over squares, by hand.
    assert float(small[1, 1, 0, 2]) == pytest.approx(float(x0[1, 1, :4, 8:].mean()), abs=FLOAT32)


def test_inpainting_masks_are_rectangles_of_their_own():
    x0, condition = images(400), ImageCondition("inpaint")
    found = condition.of_training(x0, 3, 5, np.arange(400))
    masked, mask = found[:, :2], found[:, 2]
    assert found.shape[1] == condition.channels(2) == 3
    assert torch.equal(masked, x0 * mask[:, None])
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    sizes = []
    for hole in 1 - mask:
        rows, columns = hole.amax(dim=1).nonzero().flatten(), hole.amax(dim=0).nonzero().flatten()
        assert torch.equal(hole, hole.amax(dim=1)[:, None] * hole.amax(dim=0)[None])
        for side in (rows, columns):
            assert side.tolist() == list(range(int(side[0]), int(side[-1]) + 1))
        sizes.append((len(rows), len(columns)))
    tall, wide = np.array(sizes).T
    # All sides occur: 400 draws miss one of twelve once in 10^15.
    assert set(tall.tolist()) == set(range(1, 9))
    assert set(wide.tolist()) == set(range(1, 13))
    # Each pixel may be hidden, and each may be seen.
    assert bool((mask.amin(dim=0) == 0).all())
    assert bool((mask.amax(dim=0) == 1).all())


def test_masks_are_functions_of_seed_step_and_place():
    x0, condition = images(12), ImageCondition("inpaint")
    whole = condition.of_training(x0, 3, 5, np.arange(12))
    for rank in range(3):
        part = condition.of_training(x0[rank::3], 3, 5, np.arange(rank, 12, 3))
        assert torch.equal(part, whole[rank::3])
    for seed, step in ((4, 5), (3, 6)):
        assert not torch.equal(condition.of_training(x0, seed, step, np.arange(12)), whole)


@pytest.mark.parametrize("text", ["low_res:2", "inpaint"])
def test_conditions_are_the_same_on_any_number_of_threads(text):
    x0, found = images(64, 3, 64, 64), []
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        found.append(ImageCondition(text).of_training(x0, 0, 0, np.arange(64)))
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_concatenated_network_sees_the_condition_behind_the_state():
    seen = {}

    def model(x, t, y=None):
        seen.update(x=x, t=t, y=y)
        return x[:, :1]

    x, condition, t = torch.randn(2, 1, 4, 4), torch.randn(2, 3, 4, 4), torch.zeros(2)
    Concatenated(model)(x, t, condition=condition, y=t)
    assert torch.equal(seen["x"], torch.cat([x, condition], dim=1))
    assert seen["y"] is t


@pytest.mark.parametrize("text", ["low_res", "low_res:1", "low_res:0", "low_res:-2", "low-res:2", "masks", 2, ""])
def test_unknown_conditions_are_refused(text):
    with pytest.raises(ValueError, match=r"unknown condition .*low_res takes any whole factor from 2 up"):
        ImageCondition(text)


def test_sizes_that_a_factor_does_not_divide_are_refused():
    ImageCondition("low_res:4").check_size(8, 12)
    ImageCondition("inpaint").check_size(7, 5)
    with pytest.raises(ValueError, match="low_res:4 needs a height and a width that 4 divides, got 8x6"):
        ImageCondition("low_res:4").check_size(8, 6)
