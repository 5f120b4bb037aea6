"""Densities of noise levels: one level in each part where they are stratified."""

from types import SimpleNamespace

import pytest
import torch

from fastdiff.compat import k_diffusion as k


def test_stratified_numbers_fall_into_every_part():
    for group in range(3):
        numbers = k.utils.stratified_uniform([2, 8], group=group, groups=3) * 24
        assert torch.equal(numbers.floor(), torch.arange(group, 24, 3).expand(2, 8).float())
    with pytest.raises(ValueError, match="group must be"):
        k.utils.stratified_uniform([8], group=3, groups=3)


def test_densities_are_stratified_within_the_context_alone():
    accelerator = SimpleNamespace(process_index=1, num_processes=2, step=3, gradient_state=SimpleNamespace(num_steps=2))
    with k.utils.enable_stratified_accelerate(accelerator):
        numbers = k.utils.stratified_with_settings([4])
        assert torch.equal((numbers * 16).floor(), torch.arange(3.0, 16.0, 4.0))
        with k.utils.enable_stratified(disable=True):
            k.utils.stratified_with_settings([4])
        levels = k.utils.rand_log_uniform([4], 1.0, 16.0)
        assert torch.equal((levels.log() / torch.tensor(16.0).log() * 16).floor(), torch.arange(3.0, 16.0, 4.0))
    torch.manual_seed(0)
    plain = k.utils.stratified_with_settings([5])
    torch.manual_seed(0)
    assert torch.equal(plain, torch.rand([5]))


def test_densities_draw_from_pytorchs_generator_once():
    torch.manual_seed(1)
    u = torch.rand([6])
    torch.manual_seed(1)
    levels = k.utils.rand_v_diffusion([6], sigma_data=0.5)
    torch.testing.assert_close(levels, torch.tan(u * torch.pi / 2) * 0.5)
    torch.manual_seed(1)
    levels = k.utils.rand_log_normal([6], -1.0, 2.0)
    # The levels stand a float32 logarithm and exponential away.
    torch.testing.assert_close((levels.log() + 1) / 2, torch.special.ndtri(u), rtol=1e-4, atol=1e-4)
