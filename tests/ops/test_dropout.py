"""dropout: the mask is that of the noise contract, forward and backward, in every implementation."""

import numpy as np
import pytest
import torch

from fastdiff import ops
from fastdiff.process import noise
from support.tolerances import STORAGE

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (3, 70, 11, 9), (4, 130), (1, 5000), (5,)]
SEED = -(2**62) - 12345
IDS = [3, 2**40 + 5, 0, 2**62, 1]


def images(shape, dtype=torch.float32, layout="nchw"):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    return x.contiguous(memory_format=FORMATS[layout]) if x.ndim == 4 else x


def expected_mask(x, p, ids=None):
    """From NumPy's words, in the memory order of each sample."""
    ids = range(len(x)) if ids is None else ids
    words = noise.words(SEED % 2**64, list(ids), x[:1].numel(), noise.Stream.DROPOUT, 0)
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
        x, ids = images(shape, DTYPES[dtype], layout), None if p == 0.5 else IDS[: shape[0]]
        given = None if ids is None else torch.tensor(ids)
        y = ops.dropout(x, p, torch.tensor([SEED]), sample_ids=given, implementation=implementation)
        exact = torch.where(expected_mask(x, p, ids), x.double() / (1 - p), 0)
        assert y.dtype == x.dtype
        assert y.is_contiguous(memory_format=ops.memory_format(x))
        assert bool(((y.double() - exact).abs() <= STORAGE[dtype] * exact.abs()).all())


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
@pytest.mark.parametrize("layout", FORMATS)
def test_dropout_of_a_sample_does_not_depend_on_the_batch_around_it(layout, implementation):
    x, ids = images((5, 6, 5, 7), layout=layout), torch.tensor(IDS)

    def drop(part):
        own = x[part].contiguous(memory_format=FORMATS[layout])
        return ops.dropout(own, 0.3, torch.tensor([SEED]), sample_ids=ids[part], implementation=implementation)

    whole = drop(slice(None))
    for rank in range(2):
        assert torch.equal(drop(slice(rank, None, 2)), whole[rank::2])
    assert torch.equal(torch.cat([drop(slice(first, first + 2)) for first in (0, 2, 4)]), whole)


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
        for ids in (None, IDS[:2]):
            given = None if ids is None else torch.tensor(ids)
            y = ops.dropout(x, 0.3, torch.tensor([SEED]), sample_ids=given)
            found = torch.autograd.grad(y, x, grad)[0]
            torch.testing.assert_close(found, expected_mask(x, 0.3, ids) / 0.7)
    double = images((1, 2, 3, 3), torch.float64, layout).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: ops.dropout(v, 0.3, torch.tensor([SEED])), [double])


def test_dropout_passes_opcheck_and_compiles():
    x, seed = images((2, 3, 5, 7), layout="nhwc").requires_grad_(), torch.tensor([5])
    ids = torch.tensor(IDS[:2])
    for given in (None, ids):
        torch.library.opcheck(torch.ops.fastdiff.dropout.default, (x, seed, 0.25, given))
    run = torch.compile(ops.dropout, fullgraph=True, backend="aot_eager")
    assert torch.equal(run(x, 0.25, seed, sample_ids=ids), ops.dropout(x, 0.25, seed, sample_ids=ids))


def test_dropout_is_the_same_for_any_number_of_threads():
    x, before = images((3, 70, 11, 9)), torch.get_num_threads()
    whole = ops.dropout(x, 0.4, torch.tensor([SEED]))
    try:
        torch.set_num_threads(3)
        assert torch.equal(ops.dropout(x, 0.4, torch.tensor([SEED])), whole)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2), 1.5, torch.tensor([1])), r"p must be in \[0, 1\], got 1.5"),
        ((torch.zeros(2, dtype=torch.int64), 0.5, torch.tensor([1])), "x must be float32"),
        ((torch.zeros(2), 0.5, torch.tensor([1, 2])), r"seed must be int64 \[1\]"),
        ((torch.zeros(2), 0.5, torch.tensor([1.0])), r"seed must be int64 \[1\]"),
        ((torch.zeros(()), 0.5, torch.tensor([1])), "x must have a batch dimension, got a scalar"),
        ((torch.zeros(2), 0.5, torch.tensor([1]), torch.tensor([1])), r"sample_ids must be int64 \[2\] on cpu"),
        ((torch.zeros(2), 0.5, torch.tensor([1]), torch.zeros(2)), r"sample_ids must be int64 \[2\] on cpu"),
    ],
)
def test_dropout_refuses_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        ops.dropout(*arguments[:3], sample_ids=arguments[3] if len(arguments) > 3 else None)
