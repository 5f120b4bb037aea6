"""sample(): model x table -> images."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.engine.choose import RUNNERS, Runner, compiled_or_not, native_network
from fastdiff.engine.loop import run_table
from fastdiff.engine.native import NativeNetwork, Precision
from fastdiff.engine.threads import check_threads
from fastdiff.nets.model import InputKeeper, Model, eval_mode, model_device, model_dtype
from fastdiff.ops.table_state import TableState
from fastdiff.process.checks import NotFinite, nearest_name
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.noise import Stream
from fastdiff.process.table import CoefficientTable
from fastdiff.sampling.callbacks import SamplingStep
from fastdiff.sampling.known_pixels import Known, KnownPixels
from fastdiff.sampling.runaway import RanAway, RowWatch, first_time, runs_away, warn_of
from fastdiff.sampling.seeds import Seed, Seeds, checked_seeds
from fastdiff.sampling.self_conditioning import SelfConditioning, is_self_conditioned
from fastdiff.sampling.tables import Sampler, table_of
from fastdiff.sampling.thresholding import DynamicThreshold


def sample(
    model: Model,
    table: Sampler,
    *,
    shape: tuple[int, ...],
    diffusion: Diffusion | None = None,
    steps: int | None = None,
    options: Mapping[str, Any] | None = None,
    seed: Seed = 0,
    sample_ids: Tensor | Iterable[int] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    x_init: Tensor | None = None,
    start_row: int = 0,
    runner: Runner = "auto",
    precision: Precision | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = True,
    callback: Callable[[SamplingStep], None] | None = None,
    callback_rows: Iterable[int] | None = None,
    threshold: DynamicThreshold | None = None,
    known: Known | None = None,
    check_finite: bool = False,
) -> Tensor:
    """Run a sampler, which is a coefficient table, with a model.

    The result depends on (model, table, seed, sample id) alone: not on the batch size, the device or what else is in
    the batch. A module is run in eval mode and its mode is restored.

    Args:
        model: Any callable (x [B, C, ...], t [B], **model_kwargs) -> [B, C or 2C, ...]. t is int64 when all times of
            the table are whole numbers, else float32. x has the dtype of the module's parameters, else float32. A
            `UNet` that `fastdiff.compile` compiled is one, and keeps its precision. One whose `self_condition` is True
            is given its last prediction of x_0 as `x_self_cond` as well, unless `model_kwargs` has that.
        table: The sampler: a table, from `fastdiff.samplers`; the path of one (.json); or, with `diffusion`, a name of
            `fastdiff.samplers.names()` or a function (diffusion, steps, **options) that returns a table.
        shape: [B, C, H, W] of the result; other ranks work as well.
        diffusion: What the network was trained on: a table that was built for another process is then refused.
        steps: Network evaluations of a name or a function; when None, all timesteps for "ddpm", else at most 50.
        options: Of a name or a function, such as {"eta": 0.5}.
        seed: In [0, 2^64), or one per sample: sample i is then what seed[i] gives for a batch of one.
        sample_ids: One whole number in [0, 2^63) per sample; 0..B-1 when None, and 0 for each with a seed per sample.
            Samples 100..199 of a seed are sample_ids=range(100, 200).
        model_kwargs: Passed to the model at each call.
        x_init: The state to start from, of `shape`, instead of fresh noise. Tables that start from an image, such as
            those of `renoise` and `ddim_encode` (`init_scale` is 0), need it.
        start_row: Row to start at; above 0 only with `x_init`, and only where the row needs nothing from earlier ones.
        runner: "eager" is a Python loop over rows, for any model. "native" is the C++ engine, for a float32 `UNet` on
            the CPU, or another network that it knows (docs/migration.md). "graph" records a row on a GPU and runs all
            rows as one launch, for any model that can be recorded. "auto" takes the fastest that fits, with the engine
            row by row where its loop does not, and warns where a part of the model keeps it from that.
        precision: Of the C++ engine: "fast", "strict" or "bfloat16", as `fastdiff.compile` has them; "fast", or that of
            a compiled network, when None. Where another runner is used, a warning says so, once.
        device: Where to run; the model's own device, else that of `x_init`, else the CPU.
        dtype: Of the result; float32 when None. The state is float32 (float64 for float64).
        progress: Show a progress bar on the terminal.
        callback: Called after each row.
        callback_rows: Call it after these rows only, which lets the C++ engine run on in between; -1 is the last.
        threshold: Dynamic thresholding of the predicted x_0, between the model and the step.
        known: Pixels that are put back after each row, noised to the row's level: inpainting.
        check_finite: Stop at the first row after which the state holds NaN or infinity.

    Returns:
        The state at the end of the table, of `shape`, unclamped.

    Warns:
        RuntimeWarning: a sample that began as noise came out as NaN or far above 1, with the row at which it did; once
            per sampler. To name the row, the run is repeated up to it, which takes at most as long as the run took.

    Raises:
        ValueError: shapes, ids, rows or options that do not fit; a model output of the wrong shape; a runner that
            cannot run this model.
        RuntimeError: runner "native" without the C++ extension, or "graph" without a GPU that CUDA can use.
        FloatingPointError: with `check_finite`; it names the row.
    """
    if runner not in RUNNERS:
        raise ValueError(f"unknown runner {runner!r}: {nearest_name(str(runner), RUNNERS)}")
    shape = _checked_shape(shape)
    table = table_of(table, diffusion, steps, options)
    table.check_start(start_row)
    if start_row > 0 and x_init is None:
        raise ValueError(f"start_row = {start_row} needs x_init, the state to start from")
    if table.init_scale == 0 and x_init is None:
        raise ValueError(f"the table of {table.name!r} starts from an image: give it as x_init")
    place = model_device(model, x_init, device)
    if place.type == "cpu":
        check_threads()
    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    seeds = checked_seeds(seed, shape[0])
    ids = seeds.ids(sample_ids, shape[0], place)
    wanted = _wanted_rows(callback, callback_rows, len(table))
    with torch.no_grad(), eval_mode(model):

        def first_state() -> Tensor:
            return _first_state(table, shape, seeds, ids, x_init, place, state_dtype)

        x = first_state()
        kwargs = dict(model_kwargs or {})
        network = native_network(
            model, runner, x, kwargs, None if threshold is None else "it has no dynamic thresholding", precision
        )
        pixels = None if known is None else KnownPixels(known, table, x, ids, seeds)
        rows = range(start_row, len(table))
        run = _Run(TableState(table), x, ids, seeds, rows, callback, wanted, pixels, check_finite)
        with _bar(table.name, len(run.rows), progress) as advance:
            if network is None:
                if not _run_recorded(run, model, runner, kwargs, threshold, advance):
                    # Row by row, in the engine where it runs the network.
                    fits = runner == "auto" and place.type == "cpu" and x.dtype == torch.float32 and x.ndim == 4
                    _run_eager(
                        run, compiled_or_not(model, runner, precision) if fits else model, kwargs, threshold, advance
                    )
            elif seeds.are_many and table.is_stochastic:
                # The engine's loop draws the noise of one seed.
                _run_eager(run, network, kwargs, threshold, advance)
            elif len(x) > 0:
                _run_native(run, network, kwargs.get("y"), advance)
        if x_init is None and runs_away(x) and first_time(table):
            again = None
            if known is None:
                # The same once more, row by row, up to the first that is wrong.
                again = RowWatch(table)
                watched = replace(run, x=first_state(), callback=again, wanted=frozenset(run.rows))
                with contextlib.suppress(RanAway):
                    _run_eager(watched, model, kwargs, threshold, lambda count: None)
            warn_of(table, x, None if again is None else again.row)
    return x if dtype is None else x.to(dtype)


@dataclass(frozen=True)
class _Run:
    """What is run, whoever runs it: a table on a state, which is updated in place.

    Attributes:
        state: The table.
        x: The state [B, C, ...].
        ids: Sample ids, int64 [B].
        seeds: Of all samples, or of each.
        rows: To be executed.
        callback: Told of the rows in `wanted`.
        wanted: See there.
        pixels: Put back after each row, or None.
        check_finite: Whether a state that is not finite ends it.
    """

    state: TableState
    x: Tensor
    ids: Tensor
    seeds: Seeds
    rows: range
    callback: Callable[[SamplingStep], None] | None
    wanted: frozenset[int]
    pixels: KnownPixels | None
    check_finite: bool

    def noise(self, row: int) -> Tensor:
        """A row's noise where each sample has its own seed: for each, what the row itself would draw."""

        def draw(seed: int, places: Tensor | slice) -> Tensor:
            return _normals(torch.zeros_like(self.x[places]), self.ids[places], seed, 1.0, Stream.SAMPLING, row)

        return self.seeds.drawn(self.x, draw)

    def after_row(self, row: int, prediction: Tensor | None) -> None:
        """What happens between two rows."""
        if self.pixels is not None:
            self.pixels.put_back(self.x, row)
        if self.check_finite and not bool(torch.isfinite(self.x).all()):
            raise NotFinite(row, len(self.state.table))
        self.tell(row, prediction)

    def tell(self, row: int, prediction: Tensor | None) -> None:
        """Call back, where the row is wanted."""
        if self.callback is not None and row in self.wanted:
            self.callback(SamplingStep(row, len(self.state.table), self.state.t[row], self.x, prediction))


def _run_native(run: _Run, network: NativeNetwork, labels: Tensor | None, advance: Callable[[int], None]) -> None:
    stops = frozenset(run.rows) if run.pixels is not None or run.check_finite else run.wanted
    run_table(
        network,
        run.state,
        run.x,
        run.rows,
        ids=run.ids,
        seed=run.seeds.first,
        labels=labels,
        advance=advance,
        stops=stops,
        on_stop=run.after_row,
    )


def _run_recorded(
    run: _Run,
    model: Model,
    runner: Runner,
    model_kwargs: dict[str, Any],
    threshold: DynamicThreshold | None,
    advance: Callable[[int], None],
) -> bool:
    """Run recorded rows, where the runner asks for them and they can do it; whether that was so.

    Raises:
        ValueError: runner "graph", and they cannot.
    """
    x = run.x
    if runner != "graph" and (runner != "auto" or x.device.type != "cuda"):
        return False
    reason = None
    if x.dtype != torch.float32:
        reason = f"their state is float32, got {x.dtype}"
    elif threshold is not None:
        reason = "they have no dynamic thresholding"
    elif is_self_conditioned(model, model_kwargs):
        reason = "they give a self-conditioned network no predictions"
    elif run.seeds.are_many and run.state.table.is_stochastic:
        reason = "they draw the noise of one seed"
    if reason is None:
        try:
            from fastdiff.sampling import graphs
        except ImportError as error:
            reason = f"they need Triton ({error})"
        else:
            try:
                graphs.run_table(
                    compiled := graphs.compiled_model(model),
                    run.state,
                    x,
                    run.rows,
                    device=graphs.device_for(x.device),
                    ids=run.ids,
                    seed=run.seeds.first,
                    model_kwargs=model_kwargs,
                    input_dtype=graphs.input_dtype(compiled),
                    advance=advance,
                    stops=run.wanted,
                    on_stop=run.tell,
                    after_step=None if run.pixels is None else graphs.after_step(run.pixels),
                    check_finite=run.check_finite,
                )
            except graphs.NotCapturable as error:
                if runner == "auto":
                    warnings.warn(f"the slower eager runner is used: {error}", RuntimeWarning, stacklevel=4)
                reason = str(error)
            else:
                return True
    if runner == "graph":
        raise ValueError(f"recorded rows cannot run this: {reason}; use 'auto' or 'eager'")
    return False


def _run_eager(
    run: _Run,
    model: Model,
    model_kwargs: dict[str, Any],
    threshold: DynamicThreshold | None,
    advance: Callable[[int], None],
) -> None:
    state, x = run.state, run.x
    input_dtype, keeper = model_dtype(model, x.dtype), InputKeeper(model)
    feedback = SelfConditioning(state.table) if is_self_conditioned(model, model_kwargs) else None
    prediction = torch.empty_like(x) if run.callback is not None or feedback is not None else None
    for row in run.rows:
        output = None
        if state.evaluates[row]:
            last = {} if feedback is None else feedback.arguments(input_dtype)
            given, t = state.network_input(row, x, input_dtype)
            output = (keeper if given is x else model)(given, t, **model_kwargs, **last)
            if not isinstance(output, Tensor):
                raise ValueError(
                    f"the model must return a tensor, got {type(output).__name__}; wrap it to pick its sample"
                )
            if threshold is not None:
                output = threshold.apply(state.table, row, x, output)
        # The step overwrites the state that the prediction was made from.
        before = x.clone() if feedback is not None else x
        noise = run.noise(row) if run.seeds.are_many and state.noisy[row] else None
        state.step(row, x, output, noise=noise, seed=run.seeds.first, sample_ids=run.ids, prediction=prediction, out=x)
        if feedback is not None and output is not None and prediction is not None:
            feedback.keep(row, before, prediction)
        advance(1)
        run.after_row(row, None if output is None else prediction)


def initial_noise(
    shape: tuple[int, ...], ids: Tensor, seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The noise a sampling run begins with: [B, ...] on the device of `ids`, channels_last where there are 4 dims."""
    return _normals(_zeros(shape, ids, dtype), ids, seed, scale, Stream.INITIAL)


def _zeros(shape: tuple[int, ...], ids: Tensor, dtype: torch.dtype) -> Tensor:
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return torch.zeros(shape, device=ids.device, dtype=dtype).contiguous(memory_format=layout)


def _normals(zeros: Tensor, ids: Tensor, seed: int, scale: float, stream: Stream, row: int = 0) -> Tensor:
    """scale z for the samples `ids` of a seed, in the place of zeros [B, ...]."""
    table = torch.tensor([[0.0, scale, 0.0, 0.0]], device=ids.device, dtype=zeros.dtype)
    t = torch.zeros(zeros.shape[0], dtype=torch.int64, device=ids.device)
    return ops.diffuse(zeros, t, table, seed=seed, sample_ids=ids, row=row, stream=stream, target=False)[0]


def _first_state(
    table: CoefficientTable,
    shape: tuple[int, ...],
    seeds: Seeds,
    ids: Tensor,
    x_init: Tensor | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    if x_init is None:

        def draw(seed: int, places: Tensor | slice) -> Tensor:
            return initial_noise((len(ids[places]), *shape[1:]), ids[places], seed, table.init_scale, dtype)

        return seeds.drawn(_zeros(shape, ids, dtype), draw) if seeds.are_many else draw(seeds.first, slice(None))
    if tuple(x_init.shape) != shape:
        raise ValueError(f"x_init must have shape {list(shape)}, got {list(x_init.shape)}")
    if not x_init.is_floating_point():
        raise ValueError(f"x_init must be floating point, got {x_init.dtype}")
    if not bool(torch.isfinite(x_init).all()):
        raise ValueError("x_init holds NaN or infinite values")
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    # A copy, since the state is updated in place.
    return x_init.detach().to(device, dtype, copy=True).contiguous(memory_format=layout)


def _wanted_rows(callback: object, rows: Iterable[int] | None, length: int) -> frozenset[int]:
    """Rows after which the callback is called."""
    if callback is None:
        if rows is not None:
            raise ValueError("callback_rows is given without a callback: give both, or neither")
        return frozenset()
    if rows is None:
        return frozenset(range(length))
    chosen = list(rows)
    if bad := [row for row in chosen if int(row) != row or not -length <= row < length]:
        raise ValueError(f"callback_rows must be rows of the table, -{length} to {length - 1}, got {bad[0]}")
    return frozenset(int(row) % length for row in chosen)


def _checked_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) < 2 or any(int(n) != n or n < 0 for n in shape):
        raise ValueError(f"shape must be [B, C, ...] of whole numbers, got {tuple(shape)}")
    return tuple(int(n) for n in shape)


@contextlib.contextmanager
def _bar(name: str, num_rows: int, progress: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar over rows, which is told how many were done since; or nothing."""
    if not progress:
        yield lambda count: None
        return
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        task = bar.add_task(name, total=num_rows)
        yield lambda count: bar.advance(task, count)
