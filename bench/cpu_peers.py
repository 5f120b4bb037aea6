"""The engines that the CPU bench races, each built from the same weights, for one batch at a time.

Networks are exported for a fixed batch, with what each engine's authors advise for latency on a CPU. `build` gives a
call (x float32 [B, C, H, W] as numpy, in NCHW) -> output likewise; the time is 500 for every sample, the label 1. ncnn
has no batches: it takes one image after the other.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_networks import with_plain_norms
from numpy.typing import NDArray
from torch import Tensor, nn

import fastdiff as fd
import fastdiff.nets.unet as unet_module
from fastdiff.convert import from_unet

Array = NDArray[np.float32]
Call = Callable[[Array], Array]
TIME, LABEL = 500, 1
# How a quiet figure is to be read: which of them compute in 16 bits.
SIXTEEN_BITS = ("engine bf16", "eager bf16", "openvino bf16")


def weights(preset: str) -> fd.UNet:
    """The network, with the same random weights in every process, none of them zero."""
    torch.manual_seed(0)
    unet = fd.UNet(fd.UNetConfig.preset(preset))
    with torch.no_grad():
        for parameter in unet.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.02)
    return unet.eval()


def peer(preset: str) -> nn.Module:
    """The same network as other engines read it: diffusers' where it has one, else our module by PyTorch's own ops."""
    unet = weights(preset)
    try:
        return Images(from_unet(unet)).eval()
    except ValueError:
        return Images(with_plain_norms(unet)).eval()


class Images(nn.Module):
    """A network whose output is a tensor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], t [B], y [B]."""
        output = self.network(x, t) if y is None else self.network(x, t, y)
        return output if isinstance(output, Tensor) else output.sample


def inputs(preset: str, batch: int) -> tuple[Tensor, ...]:
    """x, the time and, where the network takes one, the label."""
    config = fd.UNetConfig.preset(preset)
    x = torch.randn(batch, config.in_channels, config.image_size, config.image_size, generator=_generator())
    labels = () if config.num_classes is None else (torch.full((batch,), LABEL),)
    return x, torch.full((batch,), TIME), *labels


def reference(preset: str, batch: int) -> Array:
    """The output in float64, rounded once."""
    network = peer(preset).double()
    with torch.no_grad(), _float32_times():
        x, *others = inputs(preset, batch)
        output: Array = network(x.double(), *others).float().numpy()
    return output


def build(engine: str, preset: str, batch: int, threads: int) -> Call:
    """An engine's call.

    Raises:
        ImportError: the engine is not installed.
    """
    torch.set_num_threads(threads)
    return ENGINES[engine](preset, batch, threads)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@contextlib.contextmanager
def _float32_times() -> Iterator[None]:
    """The sinusoids of the time as float32 makes them: they are what all networks are given, not an error of theirs."""
    exact = unet_module.timestep_embedding
    unet_module.timestep_embedding = lambda t, channels, kind, dtype: exact(t, channels, kind).to(dtype)
    try:
        yield
    finally:
        unet_module.timestep_embedding = exact


def _engine(precision: str) -> Callable[[str, int, int], Call]:
    def make(preset: str, batch: int, threads: int) -> Call:
        size = fd.UNetConfig.preset(preset).image_size
        network = fd.compile(weights(preset), batch=batch, size=size, precision=precision)  # type: ignore[arg-type]
        return _torch_call(network, preset, batch)

    return make


def _torch_call(network: Callable[..., Tensor], preset: str, batch: int, *, last: bool = True) -> Call:
    _, *others = inputs(preset, batch)
    form = torch.channels_last if last else torch.contiguous_format

    def call(x: Array) -> Array:
        with torch.inference_mode():
            return network(torch.from_numpy(x).contiguous(memory_format=form), *others).float().numpy()

    return call


def _eager(preset: str, batch: int, threads: int, *, last: bool, dtype: torch.dtype = torch.float32) -> Call:
    form = torch.channels_last if last else torch.contiguous_format
    network = peer(preset).to(dtype=dtype, memory_format=form)
    if dtype == torch.float32:
        return _torch_call(network, preset, batch, last=last)
    return _torch_call(lambda x, *others: network(x.to(dtype), *others), preset, batch, last=last)


def _compiled(preset: str, batch: int, threads: int) -> Call:
    import torch._inductor.config as inductor

    inductor.freezing = True
    return _torch_call(torch.compile(peer(preset).to(memory_format=torch.channels_last)), preset, batch)


def _export(preset: str, batch: int, path: Path) -> Path:
    given = inputs(preset, batch)
    with torch.no_grad():
        torch.onnx.export(
            peer(preset),
            given,
            str(path),
            dynamo=False,
            opset_version=18,
            input_names=["x", "t", "y"][: len(given)],
            output_names=["output"],
        )
    return path


def _onnxruntime(preset: str, batch: int, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    with tempfile.TemporaryDirectory() as folder:
        path = _export(preset, batch, Path(folder) / "network.onnx")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    others = {name: value.numpy() for name, value in zip("ty", inputs(preset, batch)[1:], strict=False)}
    return lambda x: session.run(None, {"x": x, **others})[0]  # type: ignore[no-any-return]


def _openvino(precision: str) -> Callable[[str, int, int], Call]:
    def make(preset: str, batch: int, threads: int) -> Call:
        import openvino

        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
        }
        with tempfile.TemporaryDirectory() as folder:
            path = _export(preset, batch, Path(folder) / "network.onnx")
            compiled = openvino.Core().compile_model(str(path), "CPU", settings)
        others = [value.numpy() for value in inputs(preset, batch)[1:]]
        return lambda x: compiled([x, *others])[0]  # type: ignore[no-any-return]

    return make


def _mnn(preset: str, batch: int, threads: int) -> Call:
    import MNN
    import MNN.expr as expr

    names = ["x", "t", "y"][: len(inputs(preset, batch))]
    runtime = MNN.nn.create_runtime_manager(({"backend": "CPU", "numThread": threads, "precision": "high"},))
    with tempfile.TemporaryDirectory() as folder:
        path, made = _export(preset, batch, Path(folder) / "network.onnx"), str(Path(folder) / "network.mnn")
        arguments = ["-f", "ONNX", "--modelFile", str(path), "--MNNModel", made, "--bizCode", "x"]
        _run([str(Path(sys.executable).parent / "mnnconvert"), *arguments], folder)
        network = MNN.nn.load_module_from_file(made, names, ["output"], runtime_manager=runtime)

    def variable(value: NDArray[Any]) -> Any:
        whole = value.dtype == np.int64
        value = np.ascontiguousarray(value.astype(np.int32) if whole else value)
        return expr.const(value, list(value.shape), expr.NCHW, expr.int if whole else expr.float)

    others = [variable(value.numpy()) for value in inputs(preset, batch)[1:]]

    def call(x: Array) -> Array:
        output = network.forward([variable(x), *others])
        output = output[0] if isinstance(output, list | tuple) else output
        return np.array(expr.convert(output, expr.NCHW).read())

    return call


def _ncnn(preset: str, batch: int, threads: int) -> Call:
    import ncnn

    x, t, *labels = inputs(preset, 1)
    with tempfile.TemporaryDirectory() as folder:
        _to_ncnn(peer(preset), (x, t.float(), *labels), Path(folder))
        network = ncnn.Net()
        options = network.opt
        options.num_threads = threads
        options.use_bf16_storage = options.use_fp16_packed = options.use_fp16_storage = False
        options.use_fp16_arithmetic = False
        network.load_param(str(Path(folder) / "network.ncnn.param"))
        network.load_model(str(Path(folder) / "network.ncnn.bin"))
    # A Mat does not keep the array that it reads.
    arrays = [value.float().numpy() for value in (t, *labels)]
    others = [ncnn.Mat(array) for array in arrays]

    def one(image: Array) -> Array:
        extractor = network.create_extractor()
        assert len(arrays) == len(others)
        for number, value in enumerate([ncnn.Mat(image), *others]):
            extractor.input(f"in{number}", value)
        status, output = extractor.extract("out0")
        if status != 0:
            raise RuntimeError(f"ncnn's extract gave {status}")
        return np.array(output)

    return lambda x: np.stack([one(image) for image in x])


def _to_ncnn(network: nn.Module, given: tuple[Tensor, ...], folder: Path) -> None:
    # pnnx knows no conversion of types; of float32 to float32 there is none to make.
    cast = torch.Tensor.to
    torch.Tensor.to = lambda self, *arguments, **options: self  # type: ignore[assignment,method-assign]
    try:
        with torch.no_grad():
            torch.jit.trace(network, given, check_trace=False).save(str(folder / "network.pt"))
    finally:
        torch.Tensor.to = cast  # type: ignore[method-assign]
    shapes = ",".join(f"{list(value.shape)}{'f32' if value.is_floating_point() else 'i64'}" for value in given)
    tool = str(Path(sys.executable).parent / "pnnx")
    _run([tool, "network.pt", f"inputshape={shapes.replace(' ', '')}", "fp16=0"], str(folder))


def _run(command: list[str], folder: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{Path(command[0]).name} failed with {done.returncode}: {done.stderr[-500:]}")


ENGINES: dict[str, Callable[[str, int, int], Call]] = {
    "engine": _engine("fast"),
    "engine bf16": _engine("bfloat16"),
    "eager nchw": lambda *case: _eager(*case, last=False),
    "eager nhwc": lambda *case: _eager(*case, last=True),
    "eager bf16": lambda *case: _eager(*case, last=True, dtype=torch.bfloat16),
    "compiled": _compiled,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino("f32"),
    "openvino bf16": _openvino("bf16"),
    "mnn": _mnn,
    "ncnn": _ncnn,
}
