"""The CPU executor: packs a network's weights once, and runs its plan in C++."""

from __future__ import annotations

import functools
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from fastdiff import ops
from fastdiff.engine import schemas as _plan  # noqa: F401
from fastdiff.engine.bfloat16 import in_bfloat16
from fastdiff.engine.families import family_of
from fastdiff.engine.lower import Unsupported
from fastdiff.engine.pack import Places, pack_layers, pack_weights, weight_and_bias
from fastdiff.engine.packed_cache import chosen_folder
from fastdiff.engine.plan import Buffer, Instruction, Plan
from fastdiff.engine.prepared import MAX_PLANS, Prepared, Room, prepared_for, samples_to_a_lane
from fastdiff.engine.watch import Watch
from fastdiff.nets.unet import UNet
from fastdiff.process.arguments import spelt

__all__ = [
    "PRECISIONS",
    "Linear",
    "Memory",
    "NativeNetwork",
    "Precision",
    "cached_network",
    "check_memory",
    "check_precision",
    "has_bfloat16_products",
]

Precision = Literal["fast", "strict", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Memory = Literal["normal", "low"]
# Vectors of times kept, the oldest goes.
MAX_TIMES = 64
FEW_ROWS = 4
CACHED_BYTES = 1 << 20


class Linear:
    """A linear layer of the engine, whose rows do not depend on each other, not even by their number.

    Attributes:
        plan: Its one instruction, which takes its input from buffer 0 and leaves the result in buffer 1.
        weights, places: See `fastdiff.engine.pack.pack_layers`.
    """

    def __init__(self, weight: Tensor, bias: Tensor, *, act: bool) -> None:
        out_features, in_features = weight.shape
        buffers = (Buffer(1, 1, in_features), Buffer(1, 1, out_features))
        self.plan = Plan(buffers, (Instruction("conv", (0,), 1, act=act, parameter="linear"),), 0, 1, (), 0)
        self.weights, self.places = pack_layers(self.plan, [(weight, bias)])
        self.no_times = torch.zeros(1, 0, dtype=torch.float32, device="cpu")
        self._prepared: Prepared | None = None
        self._key = (0, 0)

    def __call__(self, x: Tensor) -> Tensor:
        """[N, in] to [N, out], after a SiLU where `act`."""
        rows = len(x)
        if self._prepared is None or self._key != (rows, torch.get_num_threads()):
            self._key = (rows, torch.get_num_threads())
            # For few rows one thread is as fast as all, where its weights come from a cache.
            alone = rows <= FEW_ROWS and 4 * self.weights.numel() <= CACHED_BYTES
            self._prepared = prepared_for(self.plan, rows, self.places, rows if alone else 0)
        p = self._prepared
        out = torch.empty(rows, self.plan.buffers[1].channels, 1, 1, dtype=torch.float32, device="cpu")
        torch.ops.fastdiff.plan_forward(
            x.float().contiguous()[:, :, None, None],
            p.code,
            self.weights,
            self.no_times,
            *p.memory,
            out,
        )
        return out[:, :, 0, 0]


class NativeNetwork:
    """A network compiled for the CPU: a callable (x [B, C, H, W], t [B], y [B] or None) -> [B, C_out, H, W].

    The network may change: before each call it is compared with what was packed (`fastdiff.engine.watch` says how),
    and packed again where it differs. `repack` is for changes that escape that: single numbers of a large parameter
    written through `p.data`, NumPy or an inference tensor; `sample` sees those as well.

    For inference only: no gradients, no dropout whatever the network's mode, and its own precision under autocast too.
    Threads may share it; their calls run one after the other. Copies and pickles hold a copy of the network and pack it
    anew.

    Args:
        unet: The network, float32 on the CPU: a `UNet`, one of the drop-ins that are one, or lucidrains' `Unet`. What
            these take beside images, times and labels (`low_res`, `x_self_cond`), a call takes by name.
        precision: "fast" computes 3x3 convolutions by Winograd's method where that is faster, with errors of about
            1e-6 relative to float64; "strict" computes all of them directly. "bfloat16" stores weights in 16 bits and
            multiplies bfloat16 numbers, by the processor's own instructions where it has them (AVX512-BF16, AMX), and
            sums in float32, in which the state, noise, norms and all between layers stay: errors of about 3e-3 to 3e-2
            of the largest value, at most twice those of PyTorch's bfloat16, and other bits with another instruction
            set.
        memory: "low" takes 2x2 tiles for Winograd's method, whose weights are 16/9 of the network's own and not 4
            times as large; it is slower (docs/performance.md), and a little more exact.
        cache: Folder in which packed weights are kept for other processes, found by the network's weights and this
            version; the environment's FASTDIFF_PACKED_CACHE when None. A damaged file is made again.
        hold: Keep the network alive.

    Raises:
        Unsupported: the network is not of a class that the engine knows, not float32 or not on the CPU, or has a part
            that the engine cannot run (named). It is a ValueError. A call raises it as well where the network has
            become such.
        RuntimeError: the C++ extension is not built.
    """

    def __init__(
        self,
        unet: nn.Module,
        precision: Precision = "fast",
        *,
        memory: Memory = "normal",
        cache: str | Path | None = None,
        hold: bool = True,
    ) -> None:
        self.family = family_of(unet)
        check_precision(precision)
        check_memory(memory)
        if not ops.has_extension():
            raise RuntimeError(f"the engine needs the C++ extension, which is not built ({ops.EXTENSION_ERROR})")
        if precision == "bfloat16" and not has_bfloat16_products():
            _say_that_bfloat16_is_widened()
        self.precision, self.memory, self.cache = precision, memory, chosen_folder(cache)
        self.generation = 0
        """How often the network was found to have changed."""
        # Held while memory that calls share is in use.
        self.lock = threading.RLock()
        self._network, self._held = weakref.ref(unet), unet if hold else None
        self._watch = Watch()
        self._room = Room()
        self._plans: dict[tuple[int, int], Plan] = {}
        self._packed: dict[tuple[str, ...], tuple[Tensor, Places]] = {}
        self._projections: tuple[str, ...] = ()
        self._time_layers: tuple[Linear, ...] = ()
        self._known_times: OrderedDict[tuple[torch.dtype, float], Tensor] = OrderedDict()
        # Whatever the engine cannot run is found here, not in the middle of sampling.
        self.check()

    def __repr__(self) -> str:
        unet = self._network()
        if unet is None:
            return "NativeNetwork(a network that is gone)"
        size = sum(parameter.numel() for parameter in unet.parameters())
        held = f"{self.packed_bytes / 1e6:.1f} MB packed" if self._packed else "not packed yet"
        return f"NativeNetwork({type(unet).__name__} of {size:,} parameters, {self.precision!r}, {held})"

    def __reduce__(self) -> tuple[Callable[..., NativeNetwork], tuple[nn.Module, Precision, Memory, Path | None]]:
        return _made_again, (self.unet, self.precision, self.memory, self.cache)

    @property
    def unet(self) -> nn.Module:
        """The network."""
        unet = self._network()
        if unet is None:
            raise RuntimeError("the network that was compiled is gone")
        return unet

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed weights that are held; 0 before the first call."""
        return sum(4 * packed.numel() for packed, _ in self._packed.values())

    @property
    def self_condition(self) -> bool:
        """Whether the network is to be given its last prediction of the image."""
        return getattr(self.unet, "self_condition", False) is True

    @property
    def channels(self) -> tuple[int, int]:
        """Channels of the state and of the output."""
        return self.family.channels(self.unet)

    def plan(self, height: int, width: int) -> Plan:
        """The plan for images of height x width pixels."""
        plan = self._plans.get((height, width))
        if plan is None:
            plan = self._plans[height, width] = self._lowered(height, width)
        return plan

    def _lowered(self, height: int, width: int) -> Plan:
        plan = self.family.lower(self.unet, height, width)
        if self.precision == "strict":
            return plan.strict()
        plan = in_bfloat16(plan) if self.precision == "bfloat16" else plan
        return plan.small() if self.memory == "low" else plan

    def check(self, *, thorough: bool = False) -> None:
        """Compare the network with what was packed, and drop that where it differs.

        Args:
            thorough: Compare all weights, which reads each of them once.

        Raises:
            Unsupported: the network has become one that the engine cannot run.
        """
        with self.lock:
            change = self._watch.look(self.unet, thorough=thorough)
            if change == "structure":
                self._drop()
                for name, parameter in self.unet.named_parameters():
                    if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
                        raise Unsupported(
                            f"the engine runs float32 networks on the CPU, and {name} is {parameter.dtype} on "
                            f"{parameter.device}"
                        )
                self._projections = self.plan(*self.family.size(self.unet)).projections
            if change != "nothing":
                self._packed.clear()
                self._forget_times()
                self._watch.remember(self.unet)
                self.generation += 1

    def repack(self) -> None:
        """Pack the weights anew at the next call, whatever has or has not changed."""
        with self.lock:
            self._drop()

    def prepare(self, batch: int, height: int, width: int) -> Prepared:
        """Plan, memory and code for a batch; kept for the next call."""
        with self.lock:
            key, plans = (batch, height, width, torch.get_num_threads()), self._room.plans
            if key in plans:
                plans.move_to_end(key)
                return plans[key]
            plan = self.plan(height, width)
            weights, places = self._packed_for(plan)
            sample_bytes = self._room.code(plan, 1, places)[0].length
            part = samples_to_a_lane(plan, batch, 4 * weights.numel(), sample_bytes)
            try:
                prepared = prepared_for(plan, batch, places, part, self._room)
            except RuntimeError:
                # Out of memory, perhaps: give back what earlier plans hold, and try once more.
                self._room.clear()
                prepared = prepared_for(plan, batch, places, part, self._room)
            plans[key] = prepared
            while len(plans) > MAX_PLANS:
                plans.popitem(last=False)
            return prepared

    def weights(self, height: int, width: int) -> Tensor:
        """The packed weights for images of height x width pixels."""
        self.check()
        return self.packed(self.plan(height, width))

    def packed(self, plan: Plan) -> Tensor:
        """The packed weights for a plan of this network, as they were at the last `check`."""
        return self.packed_and_places(plan)[0]

    def packed_and_places(self, plan: Plan) -> tuple[Tensor, Places]:
        """The same, and where each instruction's begin."""
        with self.lock:
            return self._packed_for(plan)

    def times(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        """What depends on times and labels alone, [N, time_width] float32, with the weights of the last `check`.

        A row does not depend on the others.
        """
        with self.lock:
            embedded, projection = self.embedded(t, y)
            labels = None if self.labels_come_first else getattr(self.unet, "label_emb", None)
            if labels is not None:
                with torch.no_grad():
                    embedded = embedded + labels(y)
            return projection(embedded)

    @property
    def labels_come_first(self) -> bool:
        """Whether the labels' vectors are part of what the first layer of the embedding is given."""
        unet = self.unet
        return isinstance(unet, UNet) and unet.label_emb is not None and unet.config.label_place == "before_mlp"

    def embedded(self, t: Tensor, y: Tensor | None = None) -> tuple[Tensor, Linear]:
        """Embedded times [N, 4 channels], before a label's vector is added, and the layer from them to `times`.

        Labels are looked at where they come first.
        """
        with self.lock:
            unet, family = self.unet, self.family
            if not self._time_layers:
                layers = [weight_and_bias(unet.get_submodule(name)) for name in self._projections]
                weights, biases = (torch.cat(parts) for parts in zip(*layers, strict=True))
                self._time_layers = (
                    Linear(*weight_and_bias(unet.get_submodule(family.layers[0])), act=False),
                    Linear(*weight_and_bias(unet.get_submodule(family.layers[1])), act=family.act == "silu"),
                    Linear(weights, biases, act=True),
                )
            first_layer, last_layer, projection = self._time_layers
            with torch.no_grad():
                hidden = first_layer(family.waves(unet, t, y))
                # In float64, since PyTorch's GELU may round otherwise at the end of a tensor.
                hidden = gelu(hidden.double()).float() if family.act == "gelu" else hidden
            return last_layer(hidden), projection

    def _times_of_batch(self, t: Tensor, y: Tensor | None) -> Tensor:
        """The same, [1 or N, time_width], with the work done once for equal times; those of one time are kept."""
        if y is not None:
            return self.times(t, y)
        if len(t) > 1:
            distinct, which = torch.unique(t, return_inverse=True)
            if len(distinct) > 1:
                return self.times(distinct)[which]
            t = distinct
        key = (t.dtype, float(t[0]))
        known = self._known_times.get(key)
        if known is None:
            known = self._known_times[key] = self.times(t)
            if len(self._known_times) > MAX_TIMES:
                self._known_times.popitem(last=False)
        return known

    def _drop(self) -> None:
        self._watch.forget()
        self._plans.clear()
        self._room.clear()
        self._packed.clear()
        self._forget_times()

    def _forget_times(self) -> None:
        self._time_layers = ()
        self._known_times.clear()

    def _packed_for(self, plan: Plan) -> tuple[Tensor, Places]:
        # Image sizes share their weights where their layers have the same algorithms; else there is room for one.
        key = plan.algorithms
        if key not in self._packed:
            self._packed.clear()
            self._packed[key] = pack_weights(plan, self.unet, self.cache)
        return self._packed[key]

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None, **extras: Tensor | None) -> Tensor:
        """Evaluate the network; arguments, result and errors as those of its `forward`.

        Raises:
            RuntimeError: x requires a gradient.
        """
        with self.lock:
            self.check()
            return self.evaluate(x, t, y, **extras)

    def evaluate(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        *,
        times: Tensor | None = None,
        **extras: Tensor | None,
    ) -> Tensor:
        """The same with the network as it was at the last `check`, for loops in which nobody changes it.

        `times` is what `times(t, y)` gave, where somebody has it.
        """
        unet, family = self.unet, self.family
        if surplus := set(extras) - set(family.extras):
            raise TypeError(f"a {type(unet).__name__} takes no {', '.join(sorted(surplus))}")
        given = (x, *extras.values())
        x = family.image(unet, x, extras) if family.extras else x
        family.check(unet, x, t, y)
        if x.device.type != "cpu":
            raise ValueError(f"x must be on the CPU, got {x.device}; move it, or call the network itself")
        if torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in given):
            raise RuntimeError("the engine has no gradients, and x requires one: detach it, or call the network itself")
        batch, _, height, width = x.shape
        with self.lock:
            out = torch.empty(
                (batch, self.channels[1], height, width),
                dtype=torch.float32,
                device="cpu",
                memory_format=torch.channels_last,
            )
            if batch == 0:
                return out
            prepared = self.prepare(batch, height, width)
            torch.ops.fastdiff.plan_forward(
                x.detach().float().contiguous(memory_format=torch.channels_last),
                prepared.code,
                self.packed(prepared.plan),
                self._times_of_batch(t, y) if times is None else times,
                *prepared.memory,
                out,
            )
        return out


def _made_again(unet: nn.Module, precision: Precision, memory: Memory, cache: Path | None) -> NativeNetwork:
    return NativeNetwork(unet, precision, memory=memory, cache=cache)


def check_precision(precision: object) -> None:
    """A precision of the engine, or a ValueError that names those there are."""
    if precision not in PRECISIONS:
        raise ValueError(f"{spelt('precision')} must be 'fast', 'strict' or 'bfloat16', got {precision!r}")


def check_memory(memory: object) -> None:
    """A choice of the room for packed weights, or a ValueError that names those there are."""
    if memory not in ("normal", "low"):
        raise ValueError(f"{spelt('memory')} must be 'normal' or 'low', got {memory!r}")


def has_bfloat16_products() -> bool:
    """Whether the instruction set in use multiplies bfloat16 numbers, or widens them to float32 first."""
    name: str = import_module("fastdiff._C").cpu_isa()
    return name in ("avx512bf16", "avx512amx", "avx512amxmodel")


@functools.cache
def _say_that_bfloat16_is_widened() -> None:
    warnings.warn(
        "this processor has no products of bfloat16 numbers (AVX512-BF16): weights are stored in 16 bits and widened "
        "to float32 for each product, which halves their memory and makes no product faster than precision 'fast'",
        RuntimeWarning,
        stacklevel=4,
    )


_cache: weakref.WeakKeyDictionary[nn.Module, dict[tuple[Precision, Memory], NativeNetwork]] = (
    weakref.WeakKeyDictionary()
)
_cache_lock = threading.Lock()


def cached_network(unet: nn.Module, precision: Precision = "fast", memory: Memory = "normal") -> NativeNetwork:
    """The network compiled, kept as long as the network itself. Raises as `NativeNetwork`, at every call."""
    key = (precision, memory)
    with _cache_lock:
        networks = _cache.get(unet, {})
        if key not in networks:
            networks[key] = NativeNetwork(unet, precision, memory=memory, hold=False)
            _cache[unet] = networks
    return networks[key]
