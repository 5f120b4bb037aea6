"""The layout of a training's instructions, and rooms in its arena."""

import re
from pathlib import Path

from fastdiff.nets.training_plan import FIELDS, OPS, Image, Recorder

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
    waves = Image(recorder.buffer(4), 1, 1, 4)
    places, floats = recorder.place(3, x, waves, None, third, slope, None)
    assert all(place % 16 == 0 for place in places)
    # x and the result are read after all the others are written, and `first` is written again.
    alive = {places[image.buffer] for image in (x, first, third, slope)}
    assert len(alive) == 4
    assert floats <= 5 * 32 + 16
