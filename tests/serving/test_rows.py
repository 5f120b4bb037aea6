"""Tests of fastdiff.serving.rows: C++ by addresses, and the same by the tables' own state."""

import pytest
import torch

from fastdiff.serving import Request
from fastdiff.serving.rows import Rows
from support.serving import chunks_of, pipeline

REQUESTS = [
    Request(num=5, labels=[0, 1, 2, 0, 1], sampler="ddpm", steps=6, seed=2**64 - 1, sample_ids=[9, 8, 7, 2**62, 0]),
    Request(num=3, labels=[0, 1, 2], sampler="dpmpp_3m", steps=6, guidance=2.0),
    Request(num=2, labels=[0, 1], sampler="heun", steps=6, seed=5),
]


@pytest.mark.parametrize("learned", [False, True])
@torch.no_grad()
def test_cpp_and_the_tables_state_give_the_same_bits(learned):
    pipe = pipeline(True, learned)
    by_address, by_state = chunks_of(pipe, REQUESTS), chunks_of(pipe, REQUESTS)
    for chunk in by_state:
        chunk.places = None
    generator = torch.Generator().manual_seed(0)
    for row in range(4):
        inputs = []
        for chunks in (by_address, by_state):
            count = sum(len(chunk.samples) * chunk.job.cost for chunk in chunks)
            given = torch.full((count, 1, 8, 8), torch.nan).contiguous(memory_format=torch.channels_last)
            Rows(chunks).fill(given)
            inputs.append(given)
        assert torch.equal(*inputs)
        channels = 2 if learned else 1
        output = torch.randn(count, channels, 8, 8, generator=generator).contiguous(memory_format=torch.channels_last)
        guided = {
            number: torch.randn(len(chunk.samples), channels, 8, 8, generator=generator).contiguous(
                memory_format=torch.channels_last
            )
            for number, chunk in enumerate(by_address)
            if chunk.job.cost == 2
        }
        wanted = [(place + row) % 2 == 0 for place in range(len(by_address))]
        found = Rows(by_address).step(output, guided, wanted)
        expected = Rows(by_state).step(output, guided, wanted)
        for mine, theirs, is_wanted in zip(found, expected, wanted, strict=True):
            assert (mine is not None) == (theirs is not None) == is_wanted
            assert mine is None or torch.equal(mine, theirs)
        for mine, theirs in zip(by_address, by_state, strict=True):
            assert torch.equal(mine.x, theirs.x)
            for chunk in (mine, theirs):
                chunk.advance(None, None)


def test_an_output_that_does_not_fit_leaves_all_rows_as_they_were():
    pipe = pipeline()
    chunks = chunks_of(pipe, REQUESTS)
    states = [chunk.x.clone() for chunk in chunks]
    count = sum(len(chunk.samples) * chunk.job.cost for chunk in chunks)
    for bad, message in [
        (torch.zeros(count, 3, 8, 8), "output must have shape"),
        (torch.zeros(count, 1, 8, 16), "must be for its input"),
        (torch.zeros(count - 1, 1, 8, 8), "must be for its input"),
        (torch.zeros(count, 1), "output must have shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            Rows(chunks).step(bad, {}, [False] * len(chunks))
        assert all(map(torch.equal, states, (chunk.x for chunk in chunks)))
