"""Paper arithmetic of a GPU's plan: counted by hand for one layer, bounded by the goals for the published network."""

import pytest

import fastdiff as fd
from fastdiff.engine import lower, place
from fastdiff.engine.cuda.network import MAX_CHUNK
from fastdiff.engine.cuda.passes import for_gpu
from fastdiff.engine.cuda.predict import RATES, predict
from fastdiff.engine.plan import Buffer, Instruction, Plan

H200 = RATES["sm_90"]
# Seconds of a step of the Ho network in bfloat16 that docs/performance.md aims at.
GOALS = {1: 300e-6, 16: 550e-6, 256: 6.6e-3, 1024: 25e-3}


@pytest.fixture(scope="module")
def published():
    return for_gpu(lower(fd.UNet(fd.UNetConfig.preset("ho-cifar10")), 32, 32, "cuda"), "bfloat16")


def test_one_convolution_is_counted_by_hand():
    buffers = (Buffer(8, 8, 64, "bfloat16"), Buffer(8, 8, 32, "bfloat16"))
    conv = Instruction("conv", (0,), 1, kernel=3, pad=1, parameter="conv")
    (found,) = predict(Plan(buffers, (conv,), 0, 1, (), 0), 4, H200)
    assert found.flops == 4 * 64 * 2 * 9 * 64 * 32
    assert found.bytes_moved == 2 * (4 * 64 * (64 + 32) + 9 * 64 * 32)
    assert found.seconds == pytest.approx(found.bytes_moved / H200.memory + H200.node)
    assert (found.kernel, found.launches, found.bound) == ("cuDNN", 1, "launch")


def test_asymmetric_stride_and_two_sources_are_two_launches():
    image = Buffer(8, 8, 64, "bfloat16")
    strided = Instruction("conv", (0,), 1, kernel=3, stride=2, parameter="conv")
    joined = Instruction("conv", (0, 2), 2, parameter="skip")
    found = predict(Plan((image, Buffer(4, 4, 64, "bfloat16"), image), (strided, joined), 0, 2, (), 0), 1, H200)
    assert [line.launches for line in found] == [2, 2]
    assert [line.kernel for line in found] == ["cuDNN", "cuBLAS"]


@pytest.mark.parametrize("batch", GOALS)
def test_floors_leave_room_for_the_goals(published, batch):
    chunk = min(batch, MAX_CHUNK)
    lines = predict(published, chunk, H200, place(published, chunk, "cuda").length)
    seconds = batch // chunk * sum(line.seconds for line in lines)
    assert seconds < 1.3 * GOALS[batch]
    # Convolutions are nearly all of a large batch's products, and nothing else may take most of its time.
    if batch >= MAX_CHUNK:
        convolutions = sum(line.seconds for line in lines if line.kernel == "cuDNN")
        assert convolutions > 0.5 * sum(line.seconds for line in lines)
