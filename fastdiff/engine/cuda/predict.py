"""What a GPU's plan costs by paper arithmetic: bytes, operations, and the time below which no kernel can be."""

from __future__ import annotations

from dataclasses import dataclass

from fastdiff.engine.plan import ITEM_BYTES, Instruction, Number, Plan

__all__ = ["RATES", "Prediction", "Rates", "predict"]


@dataclass(frozen=True)
class Rates:
    """Of a GPU.

    Attributes:
        card: The one that the figures are of.
        products: Operations per second of matrix products, by type.
        memory: Bytes per second of a copy, read plus written.
        cache: The same while all that is touched fits into `cache_bytes`.
        cache_bytes: Of the last cache.
        exponentials: Per second.
        node: Seconds that a graph takes from one kernel to the next.
    """

    card: str
    products: dict[Number, float]
    memory: float
    cache: float
    cache_bytes: int
    exponentials: float
    node: float


# sm_90: products in bfloat16 and the copy were measured on an H200; TensorFloat-32 is half of 16 bits by the data
# sheet, the cache's speed and a node's time are estimates. sm_80: nine tenths of an A100's data sheet.
RATES = {
    "sm_90": Rates(
        "H200",
        {"bfloat16": 790e12, "float16": 790e12, "float32": 395e12},
        4.3e12,
        7.0e12,
        50 << 20,
        3.7e12,
        1.9e-6,
    ),
    "sm_80": Rates(
        "A100",
        {"bfloat16": 280e12, "float16": 280e12, "float32": 140e12},
        1.4e12,
        3.5e12,
        40 << 20,
        1.8e12,
        2.2e-6,
    ),
}


@dataclass(frozen=True)
class Prediction:
    """One instruction, for a whole batch.

    Attributes:
        number: Its place in the plan.
        instruction: What it does.
        kernel: Whose kernel runs it.
        shapes: For people.
        launches: Nodes of the graph.
        flops: Operations in products.
        bytes_moved: Bytes of buffers and weights that it reads and writes.
        seconds: The longest of three floors (products, bytes, exponentials), and its nodes' time.
        bound: Which one that is.
    """

    number: int
    instruction: Instruction
    kernel: str
    shapes: str
    launches: int
    flops: int
    bytes_moved: int
    seconds: float
    bound: str


def predict(plan: Plan, batch: int, rates: Rates, arena_bytes: int | None = None) -> list[Prediction]:
    """Every instruction of a GPU's plan.

    Args:
        plan: From `fastdiff.engine.cuda.passes.for_gpu`.
        batch: Samples that run together.
        rates: Of the GPU.
        arena_bytes: Bytes that the plan's buffers take: where they fit into the cache, it is read in its place.
    """
    fits = arena_bytes is not None and arena_bytes <= rates.cache_bytes
    found = []
    for number, i in enumerate(plan.instructions):
        out = plan.buffers[i.target]
        flops, weights = batch * plan.flops(i), _weights(plan, i)
        moved = batch * plan.bytes(i)
        exponentials = 0
        if i.op == "norm_act" and i.act:
            # A SiLU is an exponential and a quotient.
            exponentials = 2 * batch * out.size
        if i.op == "attention":
            tokens = out.height * out.width
            exponentials = batch * i.heads * tokens * tokens
        floors = {
            "products": flops / rates.products[out.dtype],
            "bytes": moved / (rates.cache if fits else rates.memory) + weights / rates.memory,
            "exponentials": exponentials / rates.exponentials,
        }
        launches = _launches(plan, i)
        bound = max(floors, key=lambda name: floors[name])
        spent, waited = floors[bound], launches * rates.node
        found.append(
            Prediction(
                number,
                i,
                _kernel(i),
                _shapes(plan, i),
                launches,
                flops,
                moved + weights,
                # A node's time overlaps with none of its kernel's.
                spent + waited,
                bound if spent > waited else "launch",
            )
        )
    return found


def _weights(plan: Plan, i: Instruction) -> int:
    """Bytes of an instruction's own parameters."""
    out = plan.buffers[i.target]
    if i.op == "conv":
        return ITEM_BYTES[out.dtype] * i.kernel**2 * plan.channels_in(i) * out.channels
    return 8 * plan.channels_in(i) if i.op == "norm_act" else 0


def _launches(plan: Plan, i: Instruction) -> int:
    if i.op == "conv" and i.kernel == 1:
        return len(i.sources)
    # Zeros on two sides alone are a copy.
    return 2 if i.op == "conv" and i.stride == 2 and i.pad == 0 else 1


def _kernel(i: Instruction) -> str:
    if i.op == "conv":
        return "cuDNN" if i.kernel > 1 else "cuBLAS"
    names = {"norm_act": "group_norm_act", "add": "add", "attention": "attention or SDPA"}
    return names.get(i.op, "PyTorch")


def _shapes(plan: Plan, i: Instruction) -> str:
    source, out = plan.buffers[i.sources[0]], plan.buffers[i.target]
    channels = "+".join(str(plan.buffers[n].channels) for n in i.sources)
    text = f"{source.height}x{source.width}x{channels}"
    if (source.height, source.width, channels) != (out.height, out.width, str(out.channels)):
        text += f" to {out.height}x{out.width}x{out.channels}"
    extras = [f"{i.kernel}x{i.kernel}"] if i.op == "conv" else []
    extras += ["SiLU"] if i.act else []
    extras += [f"{i.heads} heads"] if i.op == "attention" else []
    extras += (
        ["+bias"] * bool(i.added) + ["+time"] * (i.added_time is not None) + ["+residual"] * (i.residual is not None)
    )
    extras += ["scale and shift"] * (i.op == "norm_act" and i.time is not None)
    return ", ".join([text, *extras])
