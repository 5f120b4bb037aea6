"""dropout: the mask is that of the noise contract, forward and backward, in every implementation."""

import numpy as np
import pytest
import torch

from fastdiff import ops
from fastdiff.nets.blocks import Dropout
from fastdiff.process import noise
from support.tolerances import STORAGE

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (3, 70, 11, 9), (4, 130), (1, 5000)]
SEED = -(2**62) - 12345


def images(shape, dtype=torch.float32, layout="nchw"):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    return x.contiguous(memory_format=FORMATS[layout]) if x.ndim == 4 else x


def expected_mask(x, p, seed=SEED):
    """From NumPy's words, in memory order."""
    words = noise.words(seed % 2**64, [0], x.numel(), noise.Stream.DROPOUT, 0)[0]
    kept = torch.from_numpy(words.astype(np.int64) < (1 - p) * 2**32)
    if ops.memory_format(x) == torch.channels_last:
        batch, channels, height, width = x.shape
        return kept.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return kept.view(x.shape)


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dropout_follows_the_noise_contract(shape, dtype, layout, implementation):
    for p in (0.1, 0.5, 0.97):
        x = images(shape, DTYPES[dtype], layout)
        y = ops.dropout(x, p, torch.tensor([SEED]), implementation=implementation)
        exact = torch.where(expected_mask(x, p), x.double() / (1 - p), 0)
        assert y.dtype == x.dtype
        assert y.is_contiguous(memory_format=ops.memory_format(x))
        assert bool(((y.double() - exact).abs() <= STORAGE[dtype] * exact.abs()).all())


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
def test_dropout_of_nothing_and_of_everything(implementation):
    x, seed = images((2, 3, 4, 4)), torch.tensor([1])
    assert torch.equal(ops.dropout(x, 0.0, seed, implementation=implementation), x)
    nan = torch.full_like(x, float("nan"))
    assert torch.equal(ops.dropout(nan, 1.0, seed, implementation=implementation), torch.zeros_like(x))
    assert ops.dropout(x[:0], 0.5, seed, implementation=implementation).shape == (0, 3, 4, 4)


def test_dropout_does_not_let_dropped_values_through():
    x = torch.full((1, 1000), float("inf"))
    y = ops.dropout(x, 0.5, torch.tensor([3]))
    assert not bool(y.isnan().any())
    assert 0.4 < float((y == 0).float().mean()) < 0.6


@pytest.mark.parametrize("layout", FORMATS)
def test_dropout_gradient_has_the_same_mask(layout):
    x = images((2, 6, 5, 7), layout=layout).requires_grad_()
    for other in FORMATS:
        grad = torch.ones(x.shape).contiguous(memory_format=FORMATS[other])
        found = torch.autograd.grad(ops.dropout(x, 0.3, torch.tensor([SEED])), x, grad)[0]
        torch.testing.assert_close(found, expected_mask(x, 0.3) / 0.7)
    double = images((1, 2, 3, 3), torch.float64, layout).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: ops.dropout(v, 0.3, torch.tensor([SEED])), [double])


def test_dropout_passes_opcheck_and_compiles():
    x, seed = images((2, 3, 5, 7), layout="nhwc").requires_grad_(), torch.tensor([5])
    torch.library.opcheck(torch.ops.fastdiff.dropout.default, (x, seed, 0.25))
    run = torch.compile(ops.dropout, fullgraph=True, backend="aot_eager")
    assert torch.equal(run(x, 0.25, seed), ops.dropout(x, 0.25, seed))


def test_dropout_is_the_same_for_any_number_of_threads():
    x, before = images((3, 70, 11, 9)), torch.get_num_threads()
    whole = ops.dropout(x, 0.4, torch.tensor([SEED]))
    try:
        torch.set_num_threads(3)
        assert torch.equal(ops.dropout(x, 0.4, torch.tensor([SEED])), whole)
    finally:
        torch.set_num_threads(before)


def test_dropout_module_is_repeated_by_the_seed_of_pytorch():
    module, x = Dropout(0.5), images((2, 3, 8, 8))
    torch.manual_seed(4)
    first, second = module(x), module(x)
    assert not torch.equal(first, second)
    torch.manual_seed(4)
    assert torch.equal(module(x), first)
    assert module.eval()(x) is x


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2), 1.5, torch.tensor([1])), r"p must be in \[0, 1\], got 1.5"),
        ((torch.zeros(2, dtype=torch.int64), 0.5, torch.tensor([1])), "x must be float32"),
        ((torch.zeros(2), 0.5, torch.tensor([1, 2])), r"seed must be int64 \[1\]"),
        ((torch.zeros(2), 0.5, torch.tensor([1.0])), r"seed must be int64 \[1\]"),
    ],
)
def test_dropout_refuses_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        ops.dropout(*arguments)
