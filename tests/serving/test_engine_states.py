"""fastdiff.serving.engine as a state machine: whatever comes in any order, every future is answered, with its bits."""

import random

import hypothesis
import torch
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from fastdiff.serving import Engine, Full, Request
from support.serving import alone, any_request, pipeline

CAPACITY, QUEUED = 5, 24


class Serving(RuleBasedStateMachine):
    """Requests that come, are cancelled, or do not fit, between the steps of an engine."""

    futures = Bundle("futures")

    def __init__(self):
        super().__init__()
        self.pipe = pipeline()
        self.engine = Engine(self.pipe, capacity=CAPACITY, max_queued=QUEUED)
        self.all = []
        self.refused = self.evaluated = 0

    @rule(target=futures, seed=st.integers(0, 300))
    def add(self, seed):
        request = any_request(random.Random(seed), steps=4)
        held = self.engine.stats.queued_images + self.engine.stats.running_images
        try:
            future = self.engine.add(request)
        except Full:
            assert held + request.num > QUEUED
            self.refused += 1
            return hypothesis.stateful.multiple()
        assert held + request.num <= QUEUED
        self.all.append(future)
        return future

    @rule(bad=st.sampled_from([{"num": 0}, {"sampler": "no"}, {"labels": [9]}, {"seed": -1}, {"num": QUEUED + 1}]))
    def add_what_does_not_fit(self, bad):
        try:
            self.engine.add(Request(**({"labels": [0]} | bad)))
        except ValueError:
            return
        raise AssertionError(bad)

    @rule(future=consumes(futures))
    def cancel(self, future):
        was_done = future.done()
        assert self.engine.cancel(future) is not was_done
        assert future.done()

    @rule(times=st.integers(1, 4))
    def step(self, times):
        for _ in range(times):
            count = self.engine.step()
            self.evaluated += count
            assert count <= CAPACITY
            assert count > 0 or all(future.done() for future in self.all)

    @invariant()
    def counts_agree(self):
        stats = self.engine.stats
        assert stats.added == len(self.all)
        assert stats.refused == self.refused
        assert stats.evaluations == self.evaluated
        assert stats.requests == sum(not future.done() for future in self.all)
        assert stats.finished + stats.cancelled + stats.requests == stats.added
        assert stats.failed == 0
        assert stats.queued_images + stats.running_images <= QUEUED

    def teardown(self):
        while self.engine.step():
            pass
        assert self.engine.stats.requests == 0
        assert not self.engine._queues
        assert not self.engine._future_of
        for future in self.all:
            assert future.done()
            if not future.cancelled():
                assert torch.equal(future.result(), alone(self.pipe, future.request))


TestServing = Serving.TestCase
TestServing.settings = hypothesis.settings(max_examples=25, stateful_step_count=20, deadline=None)
