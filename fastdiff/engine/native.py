"""The CPU executor: packs a network's weights once, and runs its plan in C++."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.engine import memory
from fastdiff.engine.lower import Unsupported, lower
from fastdiff.engine.pack import Places, encode, pack_layers, pack_weights
from fastdiff.engine.plan import Buffer, Instruction, Plan, place
from fastdiff.ops import _plan  # noqa: F401
from fastdiff.unet import UNet, timestep_embedding

__all__ = ["NativeNetwork", "Precision", "Prepared", "cached_network", "compile"]

Precision = Literal["fast", "strict"]
# Plans kept at a time, one per batch and size; the oldest goes.
MAX_PLANS = 4
# Of a network that threads evaluate side by side, each with samples of its own: packed weights that the last cache
# holds, and activations of some samples that a thread's own cache holds. Below so many operations per sample it pays
# for fewer samples than threads as well: meeting after each instruction costs more than the others' help is worth.
LANE_WEIGHT_BYTES = 16 << 20
LANE_ARENA_BYTES = 1 << 20
LANE_FLOPS = 100_000_000
FEW_ROWS = 4


@dataclass(frozen=True, eq=False)
class Prepared:
    """A plan with its memory, for one batch and number of threads.

    Attributes:
        plan: The instructions.
        code: The same for C++, [N, len(CODE_FIELDS)] int64.
        input, output: Where the image and the result lie in the arena.
        arena, scratch: Memory, float32.
        part, lanes: So many threads take so many samples each through the whole plan; or 0, and all threads share every
            instruction.
    """

    plan: Plan
    code: Tensor
    input: int
    output: int
    arena: Tensor
    scratch: Tensor
    part: int
    lanes: int

    @property
    def memory(self) -> tuple[int, int, Tensor, Tensor, int, int]:
        """What the ops are given of it."""
        return self.input, self.output, self.arena, self.scratch, self.part, self.lanes


class _Linear:
    """A linear layer of the engine, whose rows do not depend on each other, not even by their number."""

    def __init__(self, weight: Tensor, bias: Tensor, *, act: bool) -> None:
        out_features, in_features = weight.shape
        buffers = (Buffer(1, 1, in_features), Buffer(1, 1, out_features))
        self.plan = Plan(buffers, (Instruction("conv", (0,), 1, act=act, parameter="linear"),), 0, 1, (), 0)
        self.weights, self.places = pack_layers(self.plan, [(weight, bias)])
        self.no_times = torch.zeros(1, 0)
        self._prepared: Prepared | None = None
        self._key = (0, 0)

    def __call__(self, x: Tensor) -> Tensor:
        """[N, in] to [N, out], after a SiLU where `act`."""
        rows = len(x)
        if self._prepared is None or self._key != (rows, torch.get_num_threads()):
            self._key = (rows, torch.get_num_threads())
            # For few rows one thread is as fast as all.
            self._prepared = prepared_for(self.plan, rows, self.places, rows if rows <= FEW_ROWS else 0)
        p = self._prepared
        out = torch.empty(rows, self.plan.buffers[1].channels, 1, 1)
        torch.ops.fastdiff.plan_forward(
            x.float().contiguous()[:, :, None, None],
            p.code,
            self.weights,
            self.no_times,
            *p.memory,
            out,
        )
        return out[:, :, 0, 0]


def prepared_for(plan: Plan, batch: int, places: Places, part: int = 0) -> Prepared:
    """Memory and code of a plan for a batch and the number of threads in use; `part` samples to a lane, if any."""
    lanes = min(torch.get_num_threads(), -(-batch // part)) if part else 0
    placement = place(plan, part or batch)
    code = encode(plan, placement, places)
    scratch = memory.empty(torch.ops.fastdiff.plan_scratch(code, batch, part, lanes))
    arena = memory.empty(max(1, lanes) * placement.length)
    input, output = (placement.places[number] for number in (plan.input, plan.output))
    return Prepared(plan, code, input, output, arena, scratch, part, lanes)


def samples_to_a_lane(plan: Plan, batch: int, weight_bytes: int) -> int:
    """How many samples one thread takes through the whole plan at a time, or 0: all threads share every instruction."""
    sample_bytes = 4 * place(plan, 1).length
    if weight_bytes > LANE_WEIGHT_BYTES or sample_bytes > LANE_ARENA_BYTES:
        return 0
    threads = torch.get_num_threads()
    if batch < threads and sum(plan.flops(i) for i in plan.instructions) > LANE_FLOPS:
        return 0
    return max(1, min(LANE_ARENA_BYTES // sample_bytes, -(-batch // threads)))


class NativeNetwork:
    """A `UNet` compiled for the CPU: a callable (x [B, C, H, W], t [B], y [B] or None) -> [B, C_out, H, W].

    The network's weights may change: they are packed again when they did. For inference only.

    Args:
        unet: The network, on the CPU.
        precision: "fast" computes 3x3 convolutions by Winograd's method where that is faster, with errors of about
            1e-6 relative to float64; "strict" computes all of them directly.
        hold: Keep the network alive.

    Raises:
        Unsupported: the network is not a `UNet` on the CPU, or has a part that the engine cannot run (named). It is a
            ValueError.
        RuntimeError: the C++ extension is not built.
    """

    def __init__(self, unet: UNet, precision: Precision = "fast", *, hold: bool = True) -> None:
        if type(unet) is not UNet:
            raise Unsupported(f"the engine takes a fastdiff.UNet, got {type(unet).__name__}")
        if precision not in ("fast", "strict"):
            raise ValueError(f"precision must be 'fast' or 'strict', got {precision!r}")
        if not ops.has_extension():
            raise RuntimeError(f"the engine needs the C++ extension, which is not built ({ops.EXTENSION_ERROR})")
        for name, parameter in unet.named_parameters():
            if parameter.device.type != "cpu":
                raise Unsupported(f"the engine runs on the CPU, and {name} is on {parameter.device}")
        self.precision = precision
        self._network, self._held = weakref.ref(unet), unet if hold else None
        self._prepared: OrderedDict[tuple[int, int, int, int], Prepared] = OrderedDict()
        self._packed: dict[tuple[int, int], tuple[Tensor, Places]] = {}
        self._versions: list[tuple[int, int]] = []
        self._time_layers: tuple[_Linear, ...] = ()
        # Whatever the engine cannot run is found here, not in the middle of sampling.
        self._projections = self.plan(unet.config.image_size, unet.config.image_size).projections

    @property
    def unet(self) -> UNet:
        """The network."""
        unet = self._network()
        if unet is None:
            raise RuntimeError("the network that was compiled is gone")
        return unet

    def plan(self, height: int, width: int) -> Plan:
        """The plan for images of height x width pixels."""
        plan = lower(self.unet, height, width)
        return plan.strict() if self.precision == "strict" else plan

    def prepare(self, batch: int, height: int, width: int) -> Prepared:
        """Plan, memory and code for a batch; kept for the next call."""
        key = (batch, height, width, torch.get_num_threads())
        if key in self._prepared:
            self._prepared.move_to_end(key)
            return self._prepared[key]
        plan = self.plan(height, width)
        weights, places = self._weights(plan, height, width)
        prepared = prepared_for(plan, batch, places, samples_to_a_lane(plan, batch, 4 * weights.numel()))
        self._prepared[key] = prepared
        while len(self._prepared) > MAX_PLANS:
            self._prepared.popitem(last=False)
        return prepared

    def weights(self, height: int, width: int) -> Tensor:
        """The packed weights, packed anew if any has changed since."""
        return self._weights(None, height, width)[0]

    def times(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        """What depends on times and labels alone, [N, time_width] float32; a row does not depend on the others."""
        self._check_versions()
        if not self._time_layers:
            unet = self.unet
            weights = tuple(unet.get_parameter(f"{name}.weight") for name in self._projections)
            biases = tuple(unet.get_parameter(f"{name}.bias") for name in self._projections)
            self._time_layers = (
                _Linear(*(unet.get_parameter(f"time_embed.0.{part}") for part in ("weight", "bias")), act=False),
                _Linear(*(unet.get_parameter(f"time_embed.2.{part}") for part in ("weight", "bias")), act=True),
                _Linear(torch.cat(weights), torch.cat(biases), act=True),
            )
        first_layer, last_layer, projection = self._time_layers
        config = self.unet.config
        embedded = last_layer(first_layer(timestep_embedding(t, config.channels, config.time_embedding)))
        if self.unet.label_emb is not None:
            with torch.no_grad():
                embedded = embedded + self.unet.label_emb(y).float()
        return projection(embedded)

    def _times_of_batch(self, t: Tensor, y: Tensor | None) -> Tensor:
        """The same, [1 or N, time_width], with the work done once for equal times."""
        if y is not None:
            return self.times(t, y)
        distinct, which = torch.unique(t, return_inverse=True)
        rows = self.times(distinct)
        return rows if len(distinct) == 1 else rows[which]

    def _check_versions(self) -> None:
        versions = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in self.unet.parameters()]
        if versions != self._versions:
            self._packed.clear()
            self._time_layers = ()
            self._versions = versions

    def _weights(self, plan: Plan | None, height: int, width: int) -> tuple[Tensor, Places]:
        self._check_versions()
        if (height, width) not in self._packed:
            # Networks of other image sizes may choose other algorithms, so their weights are packed for themselves.
            self._packed = {(height, width): pack_weights(plan or self.plan(height, width), self.unet)}
        return self._packed[height, width]

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Evaluate the network; arguments, result and errors as those of `UNet.forward`."""
        self.unet._check_inputs(x, t, y)
        config = self.unet.config
        batch, _, height, width = x.shape
        out = torch.empty((batch, config.out_channels, height, width), memory_format=torch.channels_last)
        if batch == 0:
            return out.to(x.dtype)
        prepared = self.prepare(batch, height, width)
        torch.ops.fastdiff.plan_forward(
            x.detach().float().contiguous(memory_format=torch.channels_last),
            prepared.code,
            self.weights(height, width),
            self._times_of_batch(t, y),
            *prepared.memory,
            out,
        )
        return out


_cache: weakref.WeakKeyDictionary[UNet, NativeNetwork] = weakref.WeakKeyDictionary()


def cached_network(unet: UNet) -> NativeNetwork:
    """The network compiled, kept as long as the network itself. Raises as `NativeNetwork`, at every call."""
    network = _cache.get(unet)
    if network is None:
        network = _cache[unet] = NativeNetwork(unet, hold=False)
    else:
        # Hooks may have come since.
        network.plan(unet.config.image_size, unet.config.image_size)
    return network


def compile(
    unet: UNet, *, batch: int | None = None, size: int | tuple[int, int] | None = None, precision: Precision = "fast"
) -> NativeNetwork:
    """Compile a network for the CPU.

    Args:
        unet: The network, on the CPU.
        batch: Images at a time to prepare for; other batches are planned when they come.
        size: Height and width of the images, one number or two; the configuration's when None.
        precision: See `NativeNetwork`.

    Returns:
        A callable (x, t, y=None) -> output.

    Raises:
        ValueError: the network has a part that the engine cannot run (named), or a size does not fit.
        RuntimeError: the C++ extension is not built.
    """
    network = NativeNetwork(unet, precision)
    if batch is not None:
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        height, width = (size, size) if isinstance(size, int) else size or (unet.config.image_size,) * 2
        network.prepare(batch, height, width)
    return network
