"""Blocks in training on the CPU, where sums join the layer before them: as in evaluation, and as hooks expect."""

import pytest
import torch
from torch import nn

from fastdiff import ops
from fastdiff.nets.blocks import AttentionBlock, Conv3x3, ResBlock
from support.networks import fan_scaled
from support.tolerances import WINOGRAD

pytestmark = pytest.mark.skipif(not ops.has_extension(), reason="needs the C++ extension")

EMBEDDING = 12


def res_block(resample="none", width=32):
    block = ResBlock(32, width, EMBEDDING, groups=4, eps=1e-5, dropout=0.0, scale_shift=False, resample=resample)
    return fan_scaled(block), (torch.randn(2, EMBEDDING, generator=torch.Generator().manual_seed(1)),)


def attention_block():
    return fan_scaled(AttentionBlock(32, 2, groups=4, eps=1e-5, layout="new")), ()


BLOCKS = {
    "residual": res_block,
    "wider": lambda: res_block(width=48),
    "down": lambda: res_block("down"),
    "up": lambda: res_block("up"),
    "attention": attention_block,
}


def image():
    x = torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def gradients(block, x, rest):
    y = block(x, *rest)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)
    return y.detach(), torch.autograd.grad((y * weights).sum(), [x, *block.parameters()])


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_in_training_match_float64(name):
    block, rest = BLOCKS[name]()
    y, found = gradients(block.train(), image(), rest)
    doubles = tuple(value.double() for value in rest)
    exact_y, exact = gradients(block.double().eval(), image().detach().double().requires_grad_(), doubles)
    for ours, theirs in zip((y, *found), (exact_y, *exact), strict=True):
        # Two convolutions and two norms one behind the other.
        assert float((ours - theirs).abs().max() / theirs.abs().max()) <= 4 * WINOGRAD


def test_a_hook_sees_the_layer_without_what_joins_it():
    block, rest = res_block()
    x, seen = image(), []
    plain = block.train()(x, *rest)
    block.conv2.register_forward_hook(lambda module, given, result: seen.append((len(given), result)))
    block.norm1.register_forward_hook(lambda *_: None)
    y = block(x, *rest)
    ((count, result),) = seen
    assert count == 1
    assert torch.equal(y, x + result)
    assert torch.equal(y, plain)


class Adapted(nn.Module):
    """A layer around another, as adapters are."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return 2 * self.layer(x)


def test_a_replaced_layer_is_called_with_its_input_alone():
    block, rest = res_block()
    x = image()
    block.train().conv2 = Adapted(block.conv2)
    block.norm1 = Adapted(block.norm1)
    block(x, *rest).sum().backward()
    attention, _ = attention_block()
    attention.train().proj = Adapted(attention.proj)
    attention(x).sum().backward()


def test_a_convolution_adds_a_residual_in_either_mode():
    conv, x = Conv3x3(32, 32), image()
    for mode in (True, False):
        conv.train(mode)
        assert torch.equal(conv(x, x), conv(x) + x)
