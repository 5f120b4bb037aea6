"""Tests of fastdiff.serving.batch."""

import copy

import pytest
import torch

import fastdiff as fd
from fastdiff.engine.native import NativeNetwork
from fastdiff.serving import Request, batch
from fastdiff.serving.rows import Rows
from support.serving import chunks_of, pipeline
from support.tolerances import FLOAT32_RUN

REQUESTS = [
    Request(num=2, labels=[0, 1], steps=5),
    Request(num=1, labels=[2], steps=7, guidance=3.0, seed=4),
    Request(num=3, labels=[1, 1, 0], sampler="euler", steps=3, seed=9),
]


def test_outputs_are_those_of_each_request_alone():
    pipe = pipeline()
    evaluate = batch.Evaluator(pipe, None)
    assert isinstance(evaluate.model, NativeNetwork)
    evaluate.refresh()
    chunks = chunks_of(pipe, REQUESTS)
    outputs = evaluate(Rows(chunks))
    assert outputs.is_finite
    place = 0
    for number, chunk in enumerate(chunks):
        x, t = chunk.state.network_input(chunk.row, chunk.x)
        expected = evaluate.model(x, t, chunk.labels)
        if chunk.job.work.guidance is not None:
            scale, null = chunk.job.work.guidance
            weak = evaluate.model(x, t, torch.full_like(chunk.labels, null))
            assert torch.equal(outputs.guided[number], weak + scale * (expected - weak))
            expected = torch.cat([expected, weak])
        assert torch.equal(outputs.output[place : place + len(expected)], expected)
        place += len(expected)
    assert place == len(outputs.output)


def test_a_network_that_the_engine_cannot_run_is_called_as_it_is():
    class Own(fd.UNet):
        def forward(self, x, t, y=None):
            return super().forward(x, t, y)

    torch.manual_seed(0)
    unet = Own(pipeline().unet.config)
    unet.load_state_dict(pipeline().unet.state_dict())
    pipe = fd.Pipeline(unet, pipeline().diffusion, metadata=pipeline().metadata)
    evaluate = batch.Evaluator(pipe, None)
    assert evaluate.model is pipe.unet
    evaluate.refresh()
    with torch.no_grad():
        ours = evaluate(Rows(chunks_of(pipe, REQUESTS))).output
        theirs = batch.Evaluator(pipeline(), None)(Rows(chunks_of(pipeline(), REQUESTS))).output
    torch.testing.assert_close(ours, theirs, atol=FLOAT32_RUN, rtol=FLOAT32_RUN)


def test_a_network_that_gives_no_tensor_is_named():
    pipe = copy.deepcopy(pipeline())
    evaluate = batch.Evaluator(pipe, None)
    evaluate._native, evaluate.model = None, lambda x, t, y: (x,)
    with pytest.raises(ValueError, match="must return a tensor, got tuple"):
        evaluate(Rows(chunks_of(pipe, REQUESTS)))
