"""Dropout in a network: by PyTorch's generator, or by draws that are functions of seed, step and image."""

import copy

import numpy as np
import torch

from fastdiff.nets.dropout import Dropout, keyed_dropout
from fastdiff.nets.unet import UNet
from fastdiff.process.noise import Stream, words
from support.networks import random_unet, two_levels
from support.tolerances import BATCH_SPLIT

SEED, STEP, P = 2**63 + 7, 5, 0.4


def network():
    return random_unet(two_levels(dropout=P)).train()


def batch(size=4):
    x = torch.randn(size, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=torch.channels_last), torch.arange(size) * 10


def test_dropout_is_repeated_by_the_seed_of_pytorch():
    module, x = Dropout(0.5), torch.randn(2, 3, 8, 8)
    torch.manual_seed(4)
    first, second = module(x), module(x)
    assert not torch.equal(first, second)
    torch.manual_seed(4)
    assert torch.equal(module(x), first)
    assert module.eval()(x) is x


def test_keyed_dropout_masks_are_those_of_the_contract():
    layers = torch.nn.Sequential(Dropout(P), torch.nn.Linear(6, 6), Dropout(P))
    draws, x, places = keyed_dropout(layers), torch.ones(3, 40), [1, 4, 9]
    draws.at(SEED, STEP, places)
    for number, layer in ((0, layers[0]), (1, layers[2])):
        low, high = words(SEED, [number], 2, Stream.DROPOUT, STEP)[0].tolist()
        kept = words(low | high << 32, places, 40, Stream.DROPOUT, 0).astype(np.int64) < (1 - P) * 2**32
        assert torch.equal(layer(x) != 0, torch.from_numpy(kept))


def test_keyed_dropout_of_an_image_does_not_depend_on_the_batch_around_it():
    unet = network()
    draws, (x, t) = keyed_dropout(unet), batch()

    def run(places):
        draws.at(SEED, STEP, places)
        return unet(x[places], t[places])

    whole = run([0, 1, 2, 3])
    for places in ([0, 2], [1, 3], [3], [2, 0]):
        torch.testing.assert_close(run(places), whole[places], rtol=BATCH_SPLIT, atol=BATCH_SPLIT)
    draws.at(SEED, STEP + 1, range(4))
    assert not torch.equal(unet(x, t), whole)


def test_keyed_dropout_needs_no_generator_and_is_drawn_again_by_recomputation():
    unet = network()
    draws, (x, t) = keyed_dropout(unet), batch(2)
    gradients = []
    for recompute in (False, True):
        for block in [*unet.input_blocks, unet.middle_block, *unet.output_blocks]:
            block.recompute = recompute
        torch.manual_seed(int(recompute))
        draws.at(SEED, STEP, [0, 1])
        gradients.append(torch.autograd.grad(unet(x, t).square().sum(), list(unet.parameters())))
    for kept, again in zip(*gradients, strict=True):
        assert torch.equal(kept, again)


def test_keyed_dropout_takes_new_draws_without_compiling_again():
    layers = torch.nn.Sequential(Dropout(P), Dropout(P))
    draws, compiled, count = keyed_dropout(layers), [], torch._dynamo.utils.counters["stats"]
    run = torch.compile(layers, fullgraph=True, backend="aot_eager")
    x = torch.ones(2, 64)
    for step in range(3):
        draws.at(SEED, step, [step, step + 1])
        assert torch.equal(run(x), layers(x))
        compiled.append(count["unique_graphs"])
    assert compiled[0] == compiled[-1]


def test_a_copy_of_a_network_has_draws_of_its_own_and_the_state_has_none():
    unet = network()
    draws = keyed_dropout(unet)
    other = copy.deepcopy(unet)
    layer = next(module for module in other.modules() if isinstance(module, Dropout))
    assert layer.draws is not draws
    assert unet.state_dict().keys() == UNet(unet.config).state_dict().keys()
