"""k-diffusion's `utils`."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastdiff.compat import k_diffusion as k


def test_append_dims_puts_dimensions_of_1_at_the_end():
    sigma = torch.tensor([2.0, 4.0])
    assert k.utils.append_dims(sigma, 4).shape == (2, 1, 1, 1)
    assert k.utils.append_dims(sigma, 1) is not None
    assert k.append_dims(torch.ones(2, 3), 2).shape == (2, 3)
    with pytest.raises(ValueError, match="4 dims but target_dims is 2"):
        k.append_dims(torch.ones(2, 1, 2, 2), 2)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_pictures_go_there_and_back(mode):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, len(mode)), dtype=np.uint8)
    picture = Image.fromarray(pixels[..., 0] if mode == "L" else pixels)
    x = k.utils.from_pil_image(picture)
    assert x.shape == (len(mode), 5, 3)
    torch.testing.assert_close(x, torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1)
    back = k.utils.to_pil_image(x[None] + 1e-4)
    assert back.mode == mode
    np.testing.assert_array_equal(np.array(back).reshape(pixels.shape), pixels)


def test_pictures_are_cut_to_8_bits_as_there():
    values = torch.tensor([[[-2.0, -1.0, 0.0, 0.999, 3.0]]])
    assert np.array(k.utils.to_pil_image(values)).tolist() == [[0, 0, 127, 254, 255]]
    with pytest.raises(ValueError, match="one image"):
        k.utils.to_pil_image(torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match="mode must be"):
        k.utils.from_pil_image(Image.new("I;16", (2, 2)))


def test_eval_mode_gives_each_part_its_own_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    model[1].eval()
    before = [part.training for part in model.modules()]

    @k.utils.eval_mode(model)
    def inside():
        return [part.training for part in model.modules()]

    assert not any(inside())
    assert not any(inside())
    with k.utils.train_mode(model) as found:
        assert found is model
        assert all(part.training for part in model.modules())
    assert [part.training for part in model.modules()] == before


def test_ema_update_moves_parameters_and_copies_buffers():
    model, average = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    with torch.no_grad():
        model.weight.fill_(3.0)
    model.running_mean.fill_(5.0)
    k.utils.ema_update(model, average, 0.75)
    assert average.weight.tolist() == [1.5, 1.5]
    assert average.running_mean.tolist() == [5, 5]
    with pytest.raises(ValueError, match="differ in"):
        k.utils.ema_update(model, nn.Linear(2, 2), 0.5)
    assert k.utils.n_params(model) == 4
    stats = k.utils.ema_update_dict({"loss": 1.0}, {"loss": 3.0, "new": 7.0}, 0.5)
    assert stats == {"loss": 2.0, "new": 7.0}
