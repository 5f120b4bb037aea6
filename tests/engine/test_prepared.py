"""Tests of fastdiff.engine.prepared: plans of many batches in one room."""

import torch

from fastdiff.engine import native
from fastdiff.engine.native import NativeNetwork
from fastdiff.engine.prepared import lanes_of, samples_to_a_lane
from support.engine_networks import inputs, network


def test_so_many_plans_are_kept_in_one_room(monkeypatch):
    monkeypatch.setattr(native, "MAX_PLANS", 4)
    net = network("ho")
    compiled = NativeNetwork(net)
    alone = {batch: NativeNetwork(net)(*inputs(net, batch)[:2]) for batch in range(1, 8)}
    # The first time round the room grows to what the largest needs.
    for batch in (7, 1, 2, 3, 4, 5, 6) * 2:
        assert torch.equal(compiled(*inputs(net, batch)[:2]), alone[batch])
    assert [key[0] for key in compiled._room.plans] == [3, 4, 5, 6]
    kept = compiled._room.plans.values()
    assert len({plan.arena.data_ptr() for plan in kept}) == len({plan.scratch.data_ptr() for plan in kept}) == 1


def test_plans_go_when_their_room_has_to_grow():
    net = network("ho")
    compiled = NativeNetwork(net)
    for batch in (1, 2, 8):
        compiled(*inputs(net, batch)[:2])
    assert [key[0] for key in compiled._room.plans] == [8]
    # A plan of the smaller room is none of the larger one's: its memory is gone with it.
    compiled(*inputs(net, 1)[:2])
    assert [key[0] for key in compiled._room.plans] == [8, 1]


def test_lanes_are_for_networks_that_fit_the_caches():
    small = NativeNetwork(network("ho")).plan(8, 8)
    most, _ = lanes_of(small, 0)
    assert most >= 1
    assert lanes_of(small, 1 << 40) == (0, False)
    assert lanes_of(small, 0, 1 << 40) == (0, False)
    threads = torch.get_num_threads()
    assert samples_to_a_lane(small, 2 * threads, 0) == min(2, most)
    assert samples_to_a_lane(small, 1 << 20, 0) == most
