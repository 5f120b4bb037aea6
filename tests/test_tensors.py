"""Memory formats, types, and how q, k and v lie in one tensor: against indices written out."""

import pytest
import torch

from fastdiff import tensors

CHANNELS_LAST = torch.channels_last


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (torch.zeros(2, 3, 4, 5), torch.contiguous_format),
        (torch.zeros(2, 3, 4, 5).contiguous(memory_format=CHANNELS_LAST), CHANNELS_LAST),
        # Both at once: contiguous it is.
        (torch.zeros(2, 1, 4, 5).contiguous(memory_format=CHANNELS_LAST), torch.contiguous_format),
        (torch.zeros(2, 6, 4, 5).contiguous(memory_format=CHANNELS_LAST)[:, ::2], torch.contiguous_format),
        (torch.zeros(2, 4, 3).transpose(1, 2), torch.contiguous_format),
    ],
    ids=["nchw", "nhwc", "one channel", "strided", "three dimensions"],
)
def test_memory_format_is_channels_last_for_dense_images_of_that_layout_alone(x, expected):
    assert tensors.memory_format(x) == expected


@pytest.mark.parametrize("dtype", [*tensors.FLOAT_DTYPES, torch.uint8])
def test_compute_dtype_is_float32_but_for_float64(dtype):
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert tensors.compute_dtype(torch.zeros(1, dtype=dtype)) == expected


def test_per_sample_values_stand_before_every_other_dimension():
    assert tensors.per_sample(torch.arange(3), torch.zeros(3, 2, 4, 5)).shape == (3, 1, 1, 1)
    assert tensors.per_sample(torch.zeros(1), torch.zeros(3)).shape == (1,)


def place(layout, part, head, channel, heads, width):
    """The packed channel that holds a channel of a head of q (0), k (1) or v (2)."""
    if layout in ("separate", "new"):
        return part * heads * width + head * width + channel
    if layout == "legacy":
        return head * 3 * width + part * width + channel
    return head * width * 3 + channel * 3 + part


@pytest.mark.parametrize("layout", tensors.PACKINGS)
@pytest.mark.parametrize("memory", ["tokens", "channels"])
def test_split_qkv_gives_views_of_the_channels_that_the_layout_says(layout, memory):
    heads, width = 2, 3
    qkv = torch.arange(2 * 4 * 18, dtype=torch.float32).reshape(2, 4, 18)
    if memory == "channels":
        qkv = qkv.transpose(1, 2).contiguous().transpose(1, 2)
    for part, tensor in enumerate(tensors.split_qkv(qkv, heads, layout)):
        assert tensor.shape == (2, heads, 4, width)
        assert tensor.untyped_storage().data_ptr() == qkv.untyped_storage().data_ptr()
        for head in range(heads):
            for channel in range(width):
                assert torch.equal(tensor[:, head, :, channel], qkv[..., place(layout, part, head, channel, 2, 3)])


def test_split_heads_gives_each_head_its_channels():
    x = torch.arange(2 * 4 * 6).reshape(2, 4, 6)
    heads = tensors.split_heads(x, 2)
    assert torch.equal(heads[:, 0], x[..., :3])
    assert torch.equal(heads[:, 1], x[..., 3:])


@pytest.mark.parametrize("channel_major", [False, True])
def test_empty_tensors_lie_in_memory_as_the_packed_one_does(channel_major):
    qkv = torch.zeros(2, 18, 4).transpose(1, 2) if channel_major else torch.zeros(2, 4, 18)
    assert tensors.is_channel_major(qkv) == channel_major
    output, packed = tensors.empty_output(qkv, dtype=torch.bfloat16), tensors.empty_packed(qkv)
    assert (output.shape, output.dtype) == ((2, 4, 6), torch.bfloat16)
    assert (packed.shape, packed.dtype) == (qkv.shape, qkv.dtype)
    for tensor in (output, packed):
        assert tensor.is_contiguous() != channel_major
        assert tensor.transpose(1, 2).is_contiguous() == channel_major
