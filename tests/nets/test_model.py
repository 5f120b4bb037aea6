"""What is asked of a model: its mode, its place and type, its times, and the halves of its output."""

import pytest
import torch
from torch import nn

from fastdiff import Diffusion, NoiseSchedule
from fastdiff.nets.model import eval_mode, model_device, model_dtype, network_times, split_output

CPU = torch.device("cpu")


def test_network_times_are_integers_where_all_of_them_are_whole():
    whole = network_times(Diffusion(NoiseSchedule.cosine(5)), CPU)
    assert whole.dtype == torch.int64
    assert whole.tolist() == [0, 1, 2, 3, 4]
    halves = NoiseSchedule(NoiseSchedule.cosine(4).betas, [0.0, 0.5, 1.0, 1.5])
    times = network_times(Diffusion(halves), CPU)
    assert times.dtype == torch.float32
    assert times.tolist() == [0.0, 0.5, 1.0, 1.5]


def test_split_output_gives_the_variance_half_where_it_is_learned():
    x, wide = torch.zeros(2, 3, 4, 4), torch.arange(2 * 6 * 16.0).reshape(2, 6, 4, 4)
    prediction, variance = split_output(wide, x, learned_variance=True)
    assert torch.equal(prediction, wide[:, :3])
    assert torch.equal(variance, wide[:, 3:])
    assert split_output(x, x, learned_variance=False) == (x, None)


@pytest.mark.parametrize(
    ("shape", "learned", "said"),
    [
        ((2, 6, 4, 4), False, r"\[2, 3, 4, 4\], got \[2, 6, 4, 4\].*fixed"),
        ((2, 3, 4, 4), True, r"\[2, 6, 4, 4\].*learned, which takes twice the channels"),
        ((2, 3, 4, 5), False, r"got \[2, 3, 4, 5\]"),
        ((1, 3, 4, 4), False, r"got \[1, 3, 4, 4\]"),
    ],
)
def test_split_output_refuses_other_shapes(shape, learned, said):
    with pytest.raises(ValueError, match=said):
        split_output(torch.zeros(shape), torch.zeros(2, 3, 4, 4), learned)


def test_eval_mode_gives_each_module_its_own_mode_back():
    net = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.BatchNorm2d(2)))
    net.train()
    net[1][1].eval()
    before = [module.training for module in net.modules()]

    def fail_inside():
        with eval_mode(net):
            assert not any(module.training for module in net.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert [module.training for module in net.modules()] == before
    with eval_mode(lambda x, t: x):
        pass


def test_model_device_is_the_one_asked_for_then_the_models_then_that_of_x():
    meta = nn.Linear(2, 2, device="meta")
    assert model_device(meta, None, "cpu") == CPU
    assert model_device(meta, torch.zeros(1), None).type == "meta"
    assert model_device(nn.Identity(), torch.zeros(1, device="meta"), None).type == "meta"
    assert model_device(lambda x, t: x, None, None) == CPU


def test_model_dtype_is_that_of_the_first_floating_parameter():
    quantised = nn.Module()
    quantised.codes = nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
    quantised.scale = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    assert model_dtype(quantised, torch.float32) == torch.bfloat16
    assert model_dtype(nn.Identity(), torch.float64) == torch.float64
    assert model_dtype(lambda x, t: x, torch.float16) == torch.float16
