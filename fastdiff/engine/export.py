"""A network and a sampler in one file, for the executor without Python (csrc/standalone).

docs/standalone.md says what lies where; csrc/include/file_layout.h repeats it, and a test compares the two.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from fastdiff.engine.loop import check_output
from fastdiff.engine.native import NativeNetwork
from fastdiff.engine.pack import CODE_FIELDS, PANEL, Places, encode
from fastdiff.engine.plan import Plan, place
from fastdiff.engine.prepared import lanes_of
from fastdiff.ops.table_state import TableState
from fastdiff.process.table import ROW_WIDTH, CoefficientTable

__all__ = ["ALIGNMENT", "HEADER", "KINDS", "MAGIC", "NUMBERS", "SECTION", "VERSION", "WORD_ORDER", "write_model"]

MAGIC, VERSION, WORD_ORDER = b"fastdiff", 2, 0x01020304
# Of sections, in bytes.
ALIGNMENT = 64
# In the machine's own word order: magic, word order, version, size, number of sections, checksum.
HEADER = struct.Struct("=8sIIQII32x")
# Kind, checksum, offset, size.
SECTION = struct.Struct("=IIQQ8x")
KINDS = ("numbers", "text", "table", "code", "time_code", "embedded", "labels", "time_weights", "weights")
"""Of sections, in their order; their numbers begin at 1."""
NUMBERS = (
    "plan_width", "row_width", "panel", "channels", "height", "width", "channels_out", "rows", "embedding",
    "time_width", "classes", "classes_in_turn", "learned_variance", "history_depth", "uses_base", "input", "output",
    "arena", "time_input", "time_output", "time_arena", "lane_samples", "lane_few", "init_scale",
)  # fmt: skip
"""Of the section "numbers", int64 each but the last, a float64."""


def write_model(
    file: BinaryIO,
    network: NativeNetwork,
    table: CoefficientTable,
    shape: tuple[int, int, int],
    *,
    text: str = "",
    classes_in_turn: int | None = None,
) -> int:
    """Write a file from which the executor without Python samples what `fastdiff.sample` does, to the bit.

    Args:
        file: Where to write, at its start.
        network: The compiled network.
        table: The sampler.
        shape: [C, H, W] of the images.
        text: What it is, for people.
        classes_in_turn: Of a network with classes, how many of the first samples take in turn where nobody asks for
            one; all when None.

    Returns:
        Bytes written.

    Raises:
        ValueError: the table starts from an image, or does not fit the network; the network needs more than the noisy
            image, or images of another size.
        Unsupported: the network has become one that the engine cannot run.
    """
    channels, height, width = shape
    if table.init_scale == 0:
        raise ValueError(
            f"the table of {table.name!r} starts from an image, and an exported model from noise: take another sampler"
        )
    with network.lock:
        network.check(thorough=True)
        if network.labels_come_first:
            raise ValueError(
                "an exported model adds its labels behind the embedding of the time, and this network before it "
                "(label_place): it cannot be exported"
            )
        plan = network.plan(height, width)
        if (read := plan.buffers[plan.input].channels) != channels:
            raise ValueError(
                f"the network is given {read} channels, {channels} of them the noisy image, and an exported model "
                "gives it the noisy image alone: it cannot be exported"
            )
        check_output(plan.buffers[plan.output].channels, torch.empty(1, *shape, device="meta"), table.learned_variance)
        sections = _sections(network, plan, table, shape, text, classes_in_turn)
        return _write(file, sections)


def _sections(
    network: NativeNetwork,
    plan: Plan,
    table: CoefficientTable,
    shape: tuple[int, int, int],
    text: str,
    classes_in_turn: int | None,
) -> dict[str, Any]:
    state = TableState(table)
    cpu = torch.device("cpu")
    embedded, projection = network.embedded(state.times(cpu))
    weights, places = network.packed_and_places(plan)
    placement, time_placement = place(plan, 1), place(projection.plan, 1)
    labels = getattr(network.unet, "label_emb", None)
    classes = 0 if labels is None else int(labels.weight.shape[0])
    lane_samples, lane_few = lanes_of(plan, 4 * weights.numel())
    numbers: Mapping[str, float] = {
        "plan_width": len(CODE_FIELDS),
        "row_width": ROW_WIDTH,
        "panel": PANEL,
        "channels": shape[0],
        "height": shape[1],
        "width": shape[2],
        "channels_out": plan.buffers[plan.output].channels,
        "rows": len(table),
        "embedding": embedded.shape[1],
        "time_width": plan.time_width,
        "classes": classes,
        "classes_in_turn": classes if classes_in_turn is None else classes_in_turn,
        "learned_variance": int(table.learned_variance),
        "history_depth": table.history_depth,
        "uses_base": int(table.uses_base),
        "input": placement.places[plan.input] // 4,
        "output": placement.places[plan.output] // 4,
        "arena": placement.length // 4,
        "time_input": time_placement.places[projection.plan.input] // 4,
        "time_output": time_placement.places[projection.plan.output] // 4,
        "time_arena": time_placement.length // 4,
        "lane_samples": lane_samples,
        "lane_few": int(lane_few),
        "init_scale": table.init_scale,
    }
    return {
        "numbers": struct.pack(f"={len(NUMBERS) - 1}qd", *(numbers[name] for name in NUMBERS)),
        "text": text.encode(),
        "table": state.rows(torch.empty(0)),
        "code": _code(plan, places),
        "time_code": _code(projection.plan, projection.places),
        "embedded": embedded,
        **({} if labels is None else {"labels": labels.weight.detach()}),
        "time_weights": projection.weights,
        "weights": weights,
    }


def _code(plan: Plan, places: Places) -> Tensor:
    return encode(plan, place(plan, 1), places)


def _write(file: BinaryIO, sections: Mapping[str, bytes | Tensor]) -> int:
    # Nothing is copied: packed weights may take half of the memory.
    contents = {name: _bytes_of(value) for name, value in sections.items()}
    place = _aligned(HEADER.size + len(contents) * SECTION.size)
    entries, places = b"", []
    for name, content in contents.items():
        entries += SECTION.pack(KINDS.index(name) + 1, zlib.crc32(content), place, len(content))
        places.append(place)
        place = _aligned(place + len(content))
    size = places[-1] + len(list(contents.values())[-1])
    header = HEADER.pack(MAGIC, WORD_ORDER, VERSION, size, len(contents), 0)
    checksum = zlib.crc32(entries, zlib.crc32(header))
    written = file.write(HEADER.pack(MAGIC, WORD_ORDER, VERSION, size, len(contents), checksum) + entries)
    for begin, content in zip(places, contents.values(), strict=True):
        written += file.write(bytes(begin - written))
        written += file.write(content)
    return written


def _bytes_of(value: bytes | Tensor) -> memoryview:
    if isinstance(value, bytes):
        return memoryview(value)
    return np.ascontiguousarray(value.numpy()).reshape(-1).view(np.uint8).data


def _aligned(place: int) -> int:
    return -(-place // ALIGNMENT) * ALIGNMENT
