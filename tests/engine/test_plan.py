"""Plans: buffers that live at one time lie apart."""

from fastdiff.engine import lower, place
from support.engine_networks import network


def test_arena_keeps_live_buffers_apart():
    net = network("three levels")
    plan = lower(net, 16, 16)
    placement = place(plan, 3)
    spans = {}
    for step, i in enumerate(plan.instructions):
        for number in (*i.reads(), i.target):
            first, _ = spans.get(number, (step, step))
            spans[number] = (first, step)
    spans[plan.input] = (-1, len(plan.instructions))
    spans[plan.output] = (spans[plan.output][0], len(plan.instructions))
    numbers = list(spans)
    for n in numbers:
        assert placement.places[n] + 3 * plan.buffers[n].bytes <= placement.length
        for m in numbers[: numbers.index(n)]:
            together = spans[n][0] <= spans[m][1] and spans[m][0] <= spans[n][1]
            apart = (
                placement.places[n] + 3 * plan.buffers[n].bytes <= placement.places[m]
                or placement.places[m] + 3 * plan.buffers[m].bytes <= placement.places[n]
            )
            assert apart or not together
    # Far less than all buffers one behind the other.
    assert placement.length < 0.5 * sum(3 * b.bytes for b in plan.buffers)
