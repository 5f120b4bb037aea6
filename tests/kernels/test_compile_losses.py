"""The GPU kernels of posterior_mean, dropout and the losses compiled ahead of time, with no GPU."""

import pytest

pytest.importorskip("triton", reason="needs Triton: the extra 'triton'")
import kernel_report
from kernel_configs_losses import CASES

# Loads and stores of tensors at least, {bytes per thread and instruction: count}: a tile of 1024 elements, 128 threads
# (256 where 16-bit tensors meet float32 ones in posterior_mean). Those of one number per sample come on top.
WIDE = {
    "posterior mean float32": ({16: 4}, {16: 2}),
    "posterior mean float32 nhwc": ({16: 4}, {16: 2}),
    "posterior mean bfloat16": ({16: 2}, {16: 1}),
    "posterior mean float16": ({16: 2}, {16: 1}),
    "posterior mean float32, bfloat16 model": ({16: 1, 8: 1}, {16: 1}),
    "posterior mean float32, 7 billion elements": ({16: 4}, {16: 2}),
    "dropout float32": ({16: 2}, {16: 2}),
    "dropout bfloat16": ({16: 1}, {16: 1}),
    # A few numbers per channel.
    "statistics merged": ({}, {}),
    "norm factors": ({}, {}),
    "mse float32": ({16: 4}, {}),
    "mse bfloat16": ({16: 3}, {}),
    "mse float32, 7 billion elements": ({16: 4}, {}),
    "mse backward float32": ({16: 4}, {16: 2}),
    "mse backward bfloat16": ({16: 3}, {16: 1}),
    "bound terms float32": ({16: 8}, {}),
    "bound terms bfloat16, fixed variance": ({16: 5}, {}),
    "bound loss float32": ({16: 10}, {}),
    "bound loss bfloat16": ({16: 8}, {}),
    "bound loss float32, gaussian": ({16: 10}, {}),
    "bound loss float32, bound alone": ({16: 8}, {}),
    "bound loss float32, fixed variance": ({16: 6}, {}),
    "bound loss backward float32": ({16: 10}, {16: 4}),
    "bound loss backward bfloat16": ({16: 8}, {16: 2}),
    "bound loss backward float32, gaussian": ({16: 10}, {16: 4}),
    "bound loss backward float32, bound alone": ({16: 8}, {16: 4}),
    "bound loss backward float32, fixed variance": ({16: 6}, {16: 2}),
    # Images and target only: the output's halves alternate pixel by pixel.
    "bound loss float32 nhwc": ({16: 6}, {}),
    "bound loss backward float32 nhwc": ({16: 6}, {}),
    "bound loss bfloat16 nhwc": ({16: 6}, {}),
    "bound loss backward bfloat16 nhwc": ({16: 6}, {}),
}
ELSEWHERE = ["posterior mean float32", "mse backward bfloat16", "bound loss float32", "bound loss backward float32"]


def inspect(name, target):
    kernel = kernel_report.compile_launch(CASES[name], target)
    found = kernel_report.inspect(kernel)
    assert found.spills == 0
    assert found.registers <= 128
    return kernel, found


def test_every_shipped_configuration_has_its_test():
    assert set(WIDE) <= set(CASES)
    assert sorted(set(CASES) - set(WIDE)) == sorted(name for name in CASES if name.endswith("5x7"))


@pytest.mark.parametrize("name", CASES)
def test_losses_on_hopper(name):
    kernel, found = inspect(name, "sm_90")
    loads, stores = WIDE.get(name, ({}, {}))
    assert all(found.loads[width] >= count for width, count in loads.items()), found.loads
    assert all(found.stores[width] == count for width, count in stores.items()), found.stores
    assert "f64" not in kernel.asm["ptx"]


@pytest.mark.parametrize("name", ELSEWHERE)
@pytest.mark.parametrize("target", ["sm_80", "gfx942"])
def test_losses_on_other_targets(target, name):
    inspect(name, target)
