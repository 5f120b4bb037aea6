"""A `UNet` compiled for a GPU: its launches for each batch, and, for callers outside of a capture, their graph."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastdiff.engine.cuda.capture import CudaRecorder, is_recording
from fastdiff.engine.cuda.passes import for_gpu
from fastdiff.engine.cuda.weights import Weights
from fastdiff.engine.lower import Unsupported, lower
from fastdiff.engine.plan import Number, Plan
from fastdiff.engine.watch import objects_in
from fastdiff.nets.unet import UNet

if TYPE_CHECKING:
    from fastdiff.engine.cuda.launches import Launches

__all__ = ["MAX_CHUNK", "CudaNetwork", "cached_cuda_network"]

# Launches kept at a time, one list per batch and size; the oldest goes.
MAX_PLANS = 4
# Samples that go through the network together: more do not make a product faster, and their images leave the L2 cache.
MAX_CHUNK = 128
_NUMBERS: dict[torch.dtype, Number] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


class CudaNetwork:
    """A `UNet` compiled for a GPU: a callable (x [B, C, H, W], t [B], y [B] or None) -> [B, C_out, H, W].

    For inference only: no gradients and no dropout, whatever the network's mode. The network may change: parameters
    that PyTorch knows to have been written to are copied again before a call; `repack` is for changes that it does not
    count, through `p.data`. Threads may share it; their calls run one after the other.

    Args:
        unet: The network, on a GPU, in float32, bfloat16 or float16.
        precision: Of a float32 network: "fast" lets convolutions and products use TensorFloat-32, "strict" does not.
        hold: Keep the network alive.

    Raises:
        Unsupported: a part that the engine cannot run, named; it is a ValueError.
    """

    def __init__(self, unet: UNet, precision: str = "fast", *, hold: bool = True) -> None:
        if type(unet) is not UNet:
            hint = "" if isinstance(unet, UNet) else "; fastdiff.convert.to_unet makes one of diffusers' networks"
            raise Unsupported(f"the engine takes a fastdiff.UNet, got {type(unet).__name__}{hint}")
        if precision not in ("fast", "strict"):
            hint = "; for products of bfloat16 numbers give unet.to(torch.bfloat16)" if precision == "bfloat16" else ""
            raise ValueError(f"precision must be 'fast' or 'strict' on a GPU, got {precision!r}{hint}")
        self.precision = precision
        self.lock = threading.RLock()
        self.generation = 0
        """How often the network's structure, types or place were found to have changed: what was recorded is void."""
        self._network, self._held = weakref.ref(unet), unet if hold else None
        self._layout: Any = None
        self._versions: Any = None
        self._projections: tuple[str, ...] = ()
        self._launches: OrderedDict[tuple[int, int, int, bool], Launches] = OrderedDict()
        self._replays: dict[Any, Any] = {}
        self._used: torch.cuda.Event | None = None
        self.check()

    @property
    def unet(self) -> UNet:
        """The network."""
        unet = self._network()
        if unet is None:
            raise RuntimeError("the network that was compiled is gone")
        return unet

    def __repr__(self) -> str:
        unet = self._network()
        if unet is None:
            return "CudaNetwork(a network that is gone)"
        size = sum(parameter.numel() for parameter in unet.parameters())
        return f"CudaNetwork(UNet of {size:,} parameters, {self.dtype}, {self.precision!r})"

    def __reduce__(self) -> tuple[type[CudaNetwork], tuple[UNet, str]]:
        return CudaNetwork, (self.unet, self.precision)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.weights.device

    @property
    def dtype(self) -> torch.dtype:
        """Of its images and products."""
        return self.weights.dtype

    def check(self) -> None:
        """Copy the weights again where they have changed, and drop what was made where anything else has.

        Raises:
            Unsupported: the network has become one that the engine cannot run.
        """
        with self.lock:
            unet = self.unet
            parameters = list(unet.parameters())
            layout = (objects_in(unet), [(p.shape, p.dtype, p.device) for p in parameters])
            versions = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters]
            if layout != self._layout:
                kinds = {(p.dtype, p.device) for p in parameters}
                if len(kinds) != 1 or next(iter(kinds))[0] not in _NUMBERS:
                    raise Unsupported(
                        "the engine runs networks of one type, float32, bfloat16 or float16, on one device; got "
                        + ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
                    )
                self._launches.clear()
                self._replays.clear()
                self.generation += 1
                self.weights = Weights(unet, parameters[0].dtype, tf32=self.precision == "fast")
                self._projections = self.plan(*(unet.config.image_size,) * 2).projections
            elif versions != self._versions:
                self.weights.refresh()
            self._layout, self._versions = layout, versions

    def repack(self) -> None:
        """Copy all weights again, whatever has or has not changed."""
        with self.lock:
            self.check()
            self.weights.refresh()

    def plan(self, height: int, width: int) -> Plan:
        """The plan for images of height x width pixels."""
        return for_gpu(lower(self.unet, height, width, "cuda"), _NUMBERS[self.dtype])

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Within it nobody else uses the network's memory: no other thread, and on the GPU no other stream."""
        with self.lock:
            if self.device.type != "cuda" or is_recording():
                yield
                return
            stream = torch.cuda.current_stream(self.device)
            if self._used is not None:
                stream.wait_event(self._used)
            yield
            self._used = stream.record_event(self._used)

    def prepare(self, batch: int, height: int, width: int, *, time_per_sample: bool) -> Launches:
        """The launches for a batch; kept for the next call.

        Raises:
            torch.OutOfMemoryError: there is not enough memory, even without what earlier batches hold.
        """
        # It needs Triton, which a name in a signature does not.
        from fastdiff.engine.cuda.launches import make_launches

        with self.lock:
            key = (batch, height, width, time_per_sample)
            if key not in self._launches:
                plan = self.plan(height, width)
                try:
                    made = make_launches(plan, self.weights, batch, time_per_sample=time_per_sample)
                except torch.OutOfMemoryError:
                    self._launches.clear()
                    self._replays.clear()
                    made = make_launches(plan, self.weights, batch, time_per_sample=time_per_sample)
                self._launches[key] = made
                while len(self._launches) > MAX_PLANS:
                    old, _ = self._launches.popitem(last=False)
                    self._replays.pop(old, None)
            self._launches.move_to_end(key)
            return self._launches[key]

    def times(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        """What depends on times and labels alone, float32 [N, time_width]."""
        return self.weights.times(t, y, self._projections)

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Evaluate the network; arguments, result and errors as those of `UNet.forward`.

        Raises:
            RuntimeError: x requires a gradient.
        """
        self.unet._check_inputs(x, t, y)
        if x.device != self.device:
            raise ValueError(f"x must be on the network's device, {self.device}, got {x.device}: move it")
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError("the engine has no gradients, and x requires one: detach it, or call the network itself")
        with self.exclusive(), torch.no_grad():
            if not is_recording():
                self.check()
            parts = [
                self._evaluate(*part)
                for part in zip(*(_parts(v, len(x)) for v in (x, t, y)), strict=True)
                if len(part[0])
            ]
        if not parts:
            shape = (0, self.unet.config.out_channels, *x.shape[2:])
            return torch.empty(shape, dtype=self.dtype, device=x.device, memory_format=torch.channels_last)
        return parts[0] if len(parts) == 1 else torch.cat(parts).contiguous(memory_format=torch.channels_last)

    def _evaluate(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        batch, channels, height, width = x.shape
        key = (batch, height, width, True)
        launches = self.prepare(batch, height, width, time_per_sample=True)
        launches.input[:, :channels].copy_(x)
        launches.times.copy_(self.weights.times(t, y, launches.plan.projections))
        if is_recording() or not x.is_cuda:
            launches.run()
        else:
            if key not in self._replays:
                self._replays[key] = CudaRecorder(self.device).replayable(launches.run, self.unet)
            self._replays[key]()
        # The next call writes to the same memory.
        result = launches.output[:, : self.unet.config.out_channels]
        return result.clone(memory_format=torch.channels_last)


def _parts(value: Tensor | None, batch: int) -> list[Any]:
    count = max(1, -(-batch // MAX_CHUNK))
    return [None] * count if value is None else list(value.tensor_split(count))


_cache: weakref.WeakKeyDictionary[UNet, CudaNetwork] = weakref.WeakKeyDictionary()
_cache_lock = threading.Lock()


def cached_cuda_network(unet: UNet) -> CudaNetwork:
    """The network compiled for its GPU, kept as long as the network itself. Raises as `CudaNetwork`, at every call."""
    with _cache_lock:
        network = _cache.get(unet)
        if network is None:
            network = _cache[unet] = CudaNetwork(unet, hold=False)
    network.check()
    return network
