"""The network as a training runs it: in training mode, and compiled or with less memory where that is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fastdiff.nets.blocks import Block, ResBlock
from fastdiff.nets.dropout import Dropout, DropoutDraws, keyed_dropout
from fastdiff.training.config import TrainConfig

__all__ = ["in_training", "maybe_compiled"]


def maybe_compiled(network: nn.Module, config: TrainConfig) -> Any:
    """The network under `torch.compile`, where the configuration asks for it and it is not there yet.

    Its parameters are the same, and nothing is compiled before it is run.
    """
    if not config.compile or "_orig_mod" in network._modules:
        return network
    return torch.compile(network)


@contextmanager
def in_training(network: nn.Module, config: TrainConfig) -> Iterator[DropoutDraws]:
    """Within the block, training mode, dropout by the draws that come with it, and residual blocks that compute again.

    With `activation_checkpointing`, blocks with a residual block in them keep their input alone. What they draw is
    drawn again from the same state, so every bit is the same.

    Source: Chen et al. (2016), arXiv:1604.06174.
    """
    was_training = network.training
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    recomputed = [block.recompute for block in blocks]
    network.train()
    if config.activation_checkpointing:
        for block in blocks:
            block.recompute = any(isinstance(layer, ResBlock) for layer in block)
    try:
        yield keyed_dropout(network)
    finally:
        network.train(was_training)
        for module in network.modules():
            if isinstance(module, Dropout):
                module.draws = None
        for block, recompute in zip(blocks, recomputed, strict=True):
            block.recompute = recompute
