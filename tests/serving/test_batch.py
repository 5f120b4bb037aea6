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
    together, are_finite = evaluate(Rows(chunks))
    assert are_finite
    for chunk, output in zip(chunks, together, strict=True):
        x, t = chunk.state.network_input(chunk.row, chunk.x)
        expected = evaluate.model(x, t, chunk.labels)
        if chunk.job.work.guidance is not None:
            scale, null = chunk.job.work.guidance
            weak = evaluate.model(x, t, torch.full_like(chunk.labels, null))
            expected = weak + scale * (expected - weak)
        assert torch.equal(output, expected)


def test_vectors_of_times_are_kept_and_made_anew_for_a_changed_network(monkeypatch):
    pipe = copy.deepcopy(pipeline())
    evaluate = batch.Evaluator(pipe, None)
    evaluate.refresh()
    chunks = chunks_of(pipe, REQUESTS)
    first, _ = evaluate(Rows(chunks))
    asked = []
    own = NativeNetwork.times
    monkeypatch.setattr(NativeNetwork, "times", lambda self, *given: asked.append(given) or own(self, *given))
    assert all(map(torch.equal, first, evaluate(Rows(chunks))[0]))
    assert asked == []
    with torch.no_grad():
        next(pipe.unet.parameters()).mul_(1.5)
    evaluate.refresh()
    changed, _ = evaluate(Rows(chunks))
    assert len(asked) == 1
    assert not torch.equal(changed[0], first[0])
    monkeypatch.setattr(batch, "_KEPT_NUMBERS", 0)
    evaluate(Rows(chunks))
    assert len(evaluate._known) <= sum(len(chunk.samples) * chunk.job.cost for chunk in chunks)


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
        for ours, theirs in zip(
            evaluate(Rows(chunks_of(pipe, REQUESTS)))[0],
            batch.Evaluator(pipeline(), None)(Rows(chunks_of(pipeline(), REQUESTS)))[0],
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, atol=FLOAT32_RUN, rtol=FLOAT32_RUN)


def test_a_network_that_gives_no_tensor_is_named():
    pipe = copy.deepcopy(pipeline())
    evaluate = batch.Evaluator(pipe, None)
    evaluate.model = lambda x, t, y: (x,)
    with pytest.raises(ValueError, match="must return a tensor, got tuple"):
        evaluate(Rows(chunks_of(pipe, REQUESTS)))
