"""Tests of fastdiff.serving.times."""

import copy

import torch

from fastdiff.engine.native import NativeNetwork
from fastdiff.serving import Request, times
from fastdiff.serving.times import AHEAD, TimeVectors
from support.serving import chunks_of, pipeline

REQUESTS = [
    Request(num=2, labels=[0, 1], steps=5),
    Request(num=1, labels=[2], steps=40, guidance=3.0, seed=4),
    Request(num=3, labels=[1, 1, 0], sampler="euler", steps=3, seed=9),
]


def direct(network, chunks):
    """The same, asked of the network place by place."""
    rows = []
    for chunk in chunks:
        labels = chunk.labels.tolist() + ([3] * len(chunk.samples) if chunk.job.cost == 2 else [])
        for label in labels:
            t = chunk.state.times(chunk.x.device)[chunk.row]
            rows.append(network.times(t[None], torch.tensor([label]))[0])
    return torch.stack(rows)


def test_vectors_are_the_networks_own_and_made_some_rows_ahead(monkeypatch):
    network = NativeNetwork(pipeline().unet)
    chunks = chunks_of(pipeline(), REQUESTS)
    vectors = TimeVectors(network)
    asked, own = [], NativeNetwork.times
    monkeypatch.setattr(NativeNetwork, "times", lambda self, t, y=None: asked.append(len(t)) or own(self, t, y))
    assert torch.equal(vectors.of(chunks), direct(network, chunks))
    # Distinct labels of each request, the null class too, at each of its next rows; whole times are shared.
    assert 2 * AHEAD < asked[0] <= 2 * 5 + 2 * AHEAD + 2 * 3
    for chunk in chunks:
        chunk.row += 1
    asked.clear()
    found = vectors.of(chunks)
    assert asked == []
    assert torch.equal(found, direct(network, chunks))
    for chunk in chunks[1:2]:
        chunk.row = AHEAD
    asked.clear()
    vectors.of(chunks[1:2])
    assert asked == [2 * (40 - AHEAD)]


def test_vectors_of_a_changed_network_are_made_anew():
    unet = copy.deepcopy(pipeline().unet)
    network, chunks = NativeNetwork(unet), chunks_of(pipeline(), REQUESTS)
    vectors = TimeVectors(network)
    first = vectors.of(chunks)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.mul_(1.5)
    network.check()
    assert not torch.equal(vectors.of(chunks), first)
    assert torch.equal(vectors.of(chunks), direct(network, chunks))


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(times, "_KEPT_NUMBERS", 0)
    network, chunks = NativeNetwork(pipeline().unet), chunks_of(pipeline(), REQUESTS)
    vectors = TimeVectors(network)
    assert torch.equal(vectors.of(chunks), direct(network, chunks))
    assert len(vectors._known) <= 7
    assert torch.equal(vectors.of(chunks), direct(network, chunks))


def test_times_between_timesteps_and_no_labels():
    pipe = pipeline(classes=False)
    network = NativeNetwork(pipe.unet)
    chunks = chunks_of(pipe, [Request(num=2, sampler="edm", steps=5), Request(num=1, steps=7)])
    assert not chunks[0].job.has_whole_times
    found = TimeVectors(network).of(chunks)
    for place, chunk in zip((0, 2), chunks, strict=True):
        t = chunk.state.times(chunk.x.device)[chunk.row]
        assert torch.equal(found[place], network.times(t[None])[0])
