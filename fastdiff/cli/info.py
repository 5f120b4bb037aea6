"""`fastdiff info`: versions and the machine, and tables of presets, schedules, samplers, rows and models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from fastdiff.cli.options import Command, MemoryOption
from fastdiff.process.arguments import advised, spelt

if TYPE_CHECKING:
    from fastdiff.nets.unet import UNet

__all__ = ["info_app"]

info_app = typer.Typer(
    help="Versions and the machine; a bug report's facts; or presets, schedules, samplers, a sampler's table, a model.",
    invoke_without_command=True,
)


@info_app.callback()
def _overview(ctx: typer.Context) -> None:
    """Versions and the machine, unless a topic is named."""
    if ctx.invoked_subcommand is not None:
        return
    from fastdiff.cli.environment import machine, versions

    table = _table("", "")
    for name, version in versions().items():
        table.add_row(name, version or "[dim]not installed[/dim]")
    found = machine()
    built = found["extension"]
    table.add_row("C++ extension", f"built, uses {built}" if built else "not built: the slow reference runs")
    table.add_row("processor", f"{found['cpu']}, {found['cores']} cores, {found['threads']} threads in use")
    table.add_row("memory", f"{found['memory_bytes'] / 2**30:.1f} GiB")
    table.add_row("GPU", ", ".join(found["gpus"]) or "none that PyTorch can use")
    table.add_row("system", found["system"])
    _print(table)


@info_app.command(cls=Command)
def report() -> None:
    """All that a bug report needs, as plain text to paste: the above, settings, and what PyTorch gathers of itself."""
    from fastdiff.cli.environment import installed_in, machine, settings, torch_report, versions

    rows = {**versions(), "installed in": installed_in(), **machine(), **settings()}
    for name, value in rows.items():
        text = ", ".join(value) if isinstance(value, list) else value
        typer.echo(f"{name}: {'none' if text in (None, '') else text}")
    typer.echo(f"\n{torch_report()}")


@info_app.command(cls=Command)
def presets() -> None:
    """Networks by name, with their sizes."""
    from fastdiff.nets.config import PRESETS
    from fastdiff.nets.unet import num_parameters

    table = _table("name", "parameters", "image", "channels", "blocks", "attention at", "classes")
    for name, config in PRESETS.items():
        table.add_row(
            name,
            f"{num_parameters(config):,}",
            f"{config.in_channels}x{config.image_size}x{config.image_size}",
            f"{config.channels} x ({', '.join(f'{m:g}' for m in config.channel_mult)})",
            str(config.num_res_blocks),
            ", ".join(map(str, config.attention_resolutions)),
            str(config.num_classes or "-"),
        )
    _print(table)


@info_app.command(cls=Command)
def schedules(
    timesteps: Annotated[int, typer.Option("--timesteps", "-T", help="Noising steps.")] = 1000,
) -> None:
    """Noise schedules by name, with how much noise they begin and end with."""
    from fastdiff.process.schedule import NoiseSchedule

    table = _table("name", "first beta", "last beta", "first sigma", "last sigma", "half the signal at t")
    for name in NoiseSchedule.names():
        made = NoiseSchedule.named(name, timesteps)
        sigma = made.one_minus_alphas_cumprod**0.5
        half = int((made.alphas_cumprod >= 0.5).sum())
        table.add_row(
            name,
            f"{made.betas[0]:.3g}",
            f"{made.betas[-1]:.3g}",
            f"{sigma[0]:.3g}",
            f"{sigma[-1]:.6g}",
            str(half),
        )
    _print(table)


@info_app.command(cls=Command)
def samplers() -> None:
    """Samplers by name: order, network evaluations per step, noise, options, source."""
    from fastdiff import samplers as builders

    table = _table("name", "what it is", "order", "evaluations", "noise", "options, for --option", "source")
    for name in builders.names(with_statistics=True):
        info = builders.describe(name)
        options = " ".join(f"{key}={value}" for key, value in info.options.items())
        order = str(info.order) if info.order else "-"
        noise = "yes" if info.stochastic else "no"
        table.add_row(name, info.summary, order, str(info.evaluations_per_step), noise, options, info.source)
    _print(table)


@info_app.command(name="table", cls=Command)
def coefficients(
    sampler: Annotated[str, typer.Argument(help="Name of the sampler, or a table that --json wrote (.json).")],
    steps: Annotated[int | None, typer.Option(min=1, help="Network evaluations; 10, if left out.")] = None,
    schedule: Annotated[str, typer.Option(help="Noise schedule.")] = "linear",
    timesteps: Annotated[int, typer.Option("--timesteps", "-T", help="Noising steps.")] = 1000,
    prediction: Annotated[str, typer.Option(help="eps, x0, v, score, velocity or F.")] = "eps",
    variance: Annotated[str, typer.Option(help="fixed_small, fixed_large, learned or learned_range.")] = "fixed_small",
    option: Annotated[list[str] | None, typer.Option("--option", help="Of the sampler, as name=value.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw the coefficients and the levels visited: a .png.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the table to this file, a .json.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what lies at --figure and --json.")] = False,
) -> None:
    """The rows that a sampler executes; `fastdiff.process.table` says what the columns mean."""
    from fastdiff.cli.options import blaming, key_values
    from fastdiff.cli.output import check_free, check_writable
    from fastdiff.process.diffusion import Diffusion
    from fastdiff.process.schedule import NoiseSchedule
    from fastdiff.sampling.tables import table_of

    for path, name, suffix in ((json_file, "--json", ".json"), (figure, "--figure", ".png")):
        if path is not None:
            check_free(path, [suffix], overwrite=overwrite, option=name)
            check_writable(path.parent, path.name)
    kind: Any = prediction
    spread: Any = variance
    diffusion = Diffusion(NoiseSchedule.named(schedule, timesteps), kind, spread)
    is_file = sampler.lower().endswith(".json")
    count = 10 if steps is None and not is_file else steps
    with blaming("--option", option):
        # What is in a file says itself what it was built for.
        table = table_of(sampler, None if is_file else diffusion, count, key_values(option or []))
    typer.echo(str(table))
    if table.process is not None:
        typer.echo(f"built for {table.process}")
    if json_file is not None:
        from fastdiff.files.atomic import write_text

        write_text(json_file, table.to_json() + "\n")
        typer.echo(str(json_file))
    if figure is not None:
        from fastdiff.files.figures import plot_table

        typer.echo(str(plot_table(figure, table)))


@info_app.command(cls=Command)
def model(
    path: Annotated[str, typer.Argument(help="Whatever `sample` reads: a model, a training run, a file.")],
) -> None:
    """What a saved model is, of fastdiff or of another project."""
    from fastdiff.nets.config import PRESETS, UNetConfig
    from fastdiff.pipeline import Pipeline

    loaded = Pipeline.from_pretrained(path)
    # A network of another architecture has a configuration of its own.
    network: Any = loaded.unet.config
    diffusion, known = loaded.diffusion, loaded.metadata
    table = _table("", "")
    table.add_row("from", str(known.get("path", path)))
    steps = known.get("step")
    table.add_row(
        "weights", f"{known.get('weights', 'as they are')}" + ("" if steps is None else f", after {steps:,} steps")
    )
    size = sum(parameter.numel() for parameter in loaded.unet.parameters())
    table.add_row("parameters", f"{size:,}")
    if isinstance(network, UNetConfig):
        preset = next((name for name, config in PRESETS.items() if config == network), None)
        standard = PRESETS["ho-cifar10"].to_dict()
        differs = {key: value for key, value in network.to_dict().items() if value != standard[key]}
        table.add_row("network", preset or ", ".join(f"{key}={value}" for key, value in differs.items()))
    else:
        table.add_row("network", f"{type(loaded.unet).__name__}: {network}")
    table.add_row("diffusion", f"{diffusion.schedule}, predicts {diffusion.prediction}, variance {diffusion.variance}")
    levels = loaded.scaling.levels
    table.add_row("pixels", f"{levels} values" if levels else "continuous")
    table.add_row("images", "x".join(map(str, loaded.image_shape)))
    data = known.get("data")
    if data is not None and "source" in data:
        shape = "x".join(map(str, data["shape"]))
        table.add_row("trained on", f"{data['source']}: {data['num_images']:,} images of {shape}")
    if known.get("training") is not None:
        table.add_row("training", ", ".join(f"{key}={value}" for key, value in known["training"].items()))
    for what, who in (known.get("said") or {}).items():
        table.add_row("not in the file", f"{what}, from {who}")
    if known.get("versions"):
        table.add_row("saved by", ", ".join(f"{key} {value}" for key, value in known["versions"].items()))
    _print(table)


@info_app.command(cls=Command)
def plan(
    network: Annotated[str, typer.Argument(help="A preset, or whatever `sample` reads.")],
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 1,
    size: Annotated[int | None, typer.Option(min=1, help="Height and width; the network's own if left out.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="As --precision strict: direct convolutions alone.")] = False,
    precision: Annotated[str | None, typer.Option(help="fast, strict or bfloat16; fast, if left out.")] = None,
    memory: MemoryOption = "normal",
    device: Annotated[
        str | None, typer.Option(help="A GPU, sm_90 or sm_80: its plan, and what it costs by paper arithmetic.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="With --device: bfloat16 (what it takes if left out), float16 or float32.")
    ] = None,
) -> None:
    """The instructions that the engine makes of a network, and what each costs on this machine, or on a GPU."""
    if device is not None:
        _gpu_plan(network, batch, size, device, dtype or "bfloat16")
        return
    if dtype is not None:
        raise ValueError(f"{spelt('dtype')} {dtype!r} is a GPU's: expected --device sm_90 or sm_80 beside it")
    from fastdiff.engine import NativeNetwork, engine_peak, matrix_peak, profile
    from fastdiff.engine.native import check_precision

    if strict and precision not in (None, "strict"):
        raise ValueError(f"--strict is {advised('precision', 'strict')}, got {precision!r} beside it: leave one out")
    chosen = precision or ("strict" if strict else "fast")
    check_precision(chosen)
    unet = _named_network(network)
    side = size or unet.config.image_size
    compiled = NativeNetwork(unet, precision=chosen, memory=memory)  # type: ignore[arg-type]
    times = profile(compiled, batch, (side, side))
    table = _table("", "instruction", "algorithm", "products", "shapes", "GFLOP", "MB", "predicted, ms", "measured, ms")
    for found in times:
        table.add_row(
            str(found.number),
            found.instruction.op,
            found.instruction.algorithm if found.instruction.op == "conv" else "",
            found.instruction.products if found.instruction.op in ("conv", "attention") else "",
            found.description,
            f"{found.flops / 1e9:,.4f}" if found.flops else "",
            f"{found.bytes_moved / 1e6:,.2f}",
            f"{found.predicted_ms:.3f}",
            f"{found.milliseconds:.3f}",
        )
    _print(table)
    prepared = compiled.prepare(batch, side, side)
    peaks = [f"{engine_peak() / 1e9:,.0f} GFLOP/s"]
    if chosen == "bfloat16":
        peaks.append(f"{engine_peak(products='bfloat16') / 1e9:,.0f} in bfloat16")
    total, flops = sum(found.milliseconds for found in times), sum(found.flops for found in times)
    predicted = sum(found.predicted_ms for found in times)
    sizes = [4 * part.numel() / 2**20 for part in (prepared.arena, prepared.scratch, compiled.weights(side, side))]
    typer.echo(
        f"{len(times)} instructions, {flops / 1e9:,.2f} GFLOP, {total:,.1f} ms for {batch} images of {side}x{side} "
        f"({predicted:,.1f} predicted); arena {sizes[0]:,.1f} MiB, scratch {sizes[1]:,.1f} MiB, weights "
        f"{sizes[2]:,.1f} MiB; products reach {' and '.join(peaks)} here, and PyTorch's {matrix_peak() / 1e9:,.0f}"
    )


def _named_network(network: str) -> UNet:
    from fastdiff.nets.config import PRESETS
    from fastdiff.nets.unet import UNet
    from fastdiff.pipeline import Pipeline

    if network not in PRESETS:
        return Pipeline.from_pretrained(network).unet
    return UNet(PRESETS[network]).eval()


def _gpu_plan(network: str, batch: int, size: int | None, device: str, dtype: str) -> None:
    """Print what a GPU would run, which needs none."""
    from fastdiff.engine import lower, place
    from fastdiff.engine.cuda.passes import for_gpu
    from fastdiff.engine.cuda.predict import RATES, predict
    from fastdiff.engine.plan import ITEM_BYTES
    from fastdiff.process.checks import nearest_name

    for name, value, known in (("device", device, RATES), ("dtype", dtype, ITEM_BYTES)):
        if value not in known:
            raise ValueError(f"unknown {spelt(name)} {value!r}: {nearest_name(value, list(known))}")
    unet = _named_network(network)
    side = size or unet.config.image_size
    made = for_gpu(lower(unet, side, side, "cuda"), dtype)  # type: ignore[arg-type]
    rates, arena = RATES[device], place(made, batch, "cuda").length
    found = predict(made, batch, rates, arena)
    table = _table("", "instruction", "kernel", "shapes", "GFLOP", "MB", "bound by", "at least, us")
    for line in found:
        table.add_row(
            str(line.number),
            line.instruction.op,
            line.kernel,
            line.shapes,
            f"{line.flops / 1e9:,.3f}" if line.flops else "",
            f"{line.bytes_moved / 1e6:,.2f}",
            line.bound,
            f"{1e6 * line.seconds:,.1f}",
        )
    _print(table)
    seconds, nodes = sum(line.seconds for line in found), sum(line.launches for line in found)
    typer.echo(
        f"{len(found)} instructions, {nodes} launches, {sum(line.flops for line in found) / 1e9:,.1f} GFLOP, "
        f"{sum(line.bytes_moved for line in found) / 1e6:,.1f} MB; arena {arena / 2**20:,.1f} MiB; at least "
        f"{1e3 * seconds:,.3f} ms for {batch} images of {side}x{side} on a {rates.card}, of which "
        f"{1e3 * nodes * rates.node:,.3f} from one kernel to the next. By paper arithmetic: nothing was run on a GPU"
    )


def _table(*headings: str) -> Table:
    """A table; its last column wraps where the terminal is narrow."""
    table = Table(box=box.SIMPLE_HEAD if any(headings) else None, pad_edge=False, show_header=any(headings))
    for number, heading in enumerate(headings, start=1):
        table.add_column(heading, overflow="fold", no_wrap=number == 1)
    return table


def _print(table: Table) -> None:
    # Into a file or a pipe, a table is as wide as it likes.
    Console(width=None if sys.stdout.isatty() else 200).print(table)
