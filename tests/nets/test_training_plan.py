"""The layout of a training's instructions, their order, and rooms in its arena."""

import itertools
import re
from pathlib import Path

from fastdiff.nets.training_plan import FIELDS, OPS, Recorder

HEADER = (Path(__file__).parents[2] / "csrc" / "include" / "training_layout.h").read_text()


def test_instructions_lie_as_the_executor_reads_them():
    struct = re.search(r"struct TrainInstruction \{(.*?)\};", HEADER, re.DOTALL)[1]
    fields = [name.strip() for line in re.findall(r"int64_t ([^;]*);", struct) for name in line.split(",")]
    assert tuple(fields) == FIELDS
    names = re.search(r"enum TrainOp : int64_t \{(.*?)\};", HEADER, re.DOTALL)[1]
    assert tuple(name.strip().removeprefix("TRAIN_").lower() for name in names.split(",")[: len(OPS)]) == OPS


def test_buffers_share_room_unless_they_are_alive_together():
    recorder = Recorder()
    x, first, second, third, slope = (recorder.image(1, 1, 20) for _ in range(5))
    for source, target in ((x, first), (first, second), (second, third)):
        recorder.emit("silu", x=source.buffer, y=target.buffer, channels=20, height_out=1, width_out=1)
    recorder.emit("silu_grad", x=x.buffer, x2=slope.buffer, y=first.buffer, channels=20, height_out=1, width_out=1)
    waves = recorder.buffer(4)
    places, floats = recorder.place(3, [x.buffer, waves], [third.buffer], [slope.buffer], [], apart=None)
    assert all(place % 16 == 0 for place in places)
    # x and the result are read after all the others are written, and `first` is written again.
    alive = {places[image.buffer] for image in (x, first, third, slope)}
    assert len(alive) == 4
    assert floats <= 5 * 32 + 16


def of_three_sizes():
    """A chain of buffers of 8, 16, 24, 8, ... floats, of which the way back reads the first three."""
    recorder = Recorder()
    images = [recorder.image(1, 1, 8 * (1 + k % 3)) for k in range(9)]
    grads = [recorder.like(image) for image in images[:3]]
    for source, target in itertools.pairwise(images):
        recorder.emit("silu", x=source.buffer, y=target.buffer, channels=source.channels)
    for image, grad in zip(reversed(images[:3]), grads, strict=True):
        recorder.emit("sums", x=image.buffer, bias=0, channels=image.channels)
        recorder.emit("silu", x=image.buffer, y=grad.buffer, channels=image.channels)
    return recorder, images, grads


def test_no_two_samples_share_room_where_they_are_at_different_instructions():
    recorder, images, grads = of_three_sizes()
    forward, given, results, slopes = 8, [images[0].buffer], [images[-1].buffer], [grads[0].buffer]
    alone = recorder.set_weights_last(forward)
    assert alone == 3
    assert [OPS[row["op"]] for row in recorder.code[forward + alone :]] == ["sums"] * 3
    places, floats = recorder.place(forward, given, results, slopes, [], apart=alone)
    sizes = recorder.sizes
    # The forward pass has all of these, so that two of them lie apart, or a sample has the same place in both.
    for a, b in itertools.combinations([image.buffer for image in images], 2):
        is_apart = places[a] + sizes[a] <= places[b] or places[b] + sizes[b] <= places[a]
        assert is_apart or (places[a], sizes[a]) == (places[b], sizes[b])
    assert len({places[image.buffer] for image in images}) < len(images)
    assert floats < sum(-(-size // 16) * 16 for size in sizes)


def test_a_gradient_of_weights_whose_source_changes_later_stays_where_it_is():
    recorder, images, _ = of_three_sizes()
    recorder.emit("silu", x=images[1].buffer, y=images[1].buffer, channels=images[1].channels)
    before = list(recorder.code)
    assert recorder.set_weights_last(8) is None
    assert recorder.code == before
