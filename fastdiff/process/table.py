"""CoefficientTable: a sampler as data. One row per model evaluation; one fused kernel executes a row.

A row means, with the state slots x, base (one saved state), p1, p2, p3 (past predictions, newest first), the
model's output m and fresh noise z:

    m     = model(ci * x, t)
    pred  = clamp(px * x + pm * m, -clip, clip)
    x'    = cx*x + cb*base + cm*m + c0*pred + c1*p1 + c2*p2 + c3*p3 + s*exp(0.5*logvar)*z
    base' = bx*x + bb*base + bm*m + b0*pred + b1*p1 + b2*p2 + b3*p3     if save_base
    push pred into the history                                          if push

logvar is 0, or, where the variance is learned and the row evaluates, v*log_max + (1 - v)*log_min with
v = (second half of the output + 1)/2.
NumPy float64; importing this module does not import torch.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastdiff.process.checks import check_keys, whole_number
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.record import ProcessRecord
from fastdiff.process.schedule import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Order of a row in memory, shared by every kernel; csrc/include/row_layout.h repeats it and a test compares them.
COEFFICIENTS = (
    "t", "ci", "px", "pm", "clip",
    "cx", "cb", "cm", "c0", "c1", "c2", "c3", "s", "log_min", "log_max",
    "bx", "bb", "bm", "b0", "b1", "b2", "b3",
)  # fmt: skip
FLAGS = ("evaluate", "save_base", "push")
ROW_FIELDS = (*COEFFICIENTS, *FLAGS, "slot", "depth")
ROW_WIDTH = 32

DEFAULTS: Mapping[str, float] = dict.fromkeys((*COEFFICIENTS, *FLAGS), 0.0) | {
    "ci": 1.0,
    "clip": np.inf,
    "evaluate": 1.0,
}
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class CoefficientTable:
    """A sampler, from its first state to its last, as rows of coefficients.

    Attributes:
        columns: One float64 array of R entries per name in `COEFFICIENTS` and `FLAGS`; columns left out take their
            defaults (ci = 1, clip = inf, evaluate = 1, everything else 0). Flags are 0 or 1.
        name: The sampler's name.
        learned_variance: The model gives 2C channels and the noise's scale comes from the second half.
        init_scale: The first state is init_scale * z.
        order: Order of convergence; 0 when stochastic or not known.
        data_prediction: Whether `pred` is the predicted image; else it is the predicted noise.
        alphas, sigmas: Length R + 1, the level of the state before the first row and after each row: nominally
            x ~ N(alpha x_0, sigma^2). Empty when the builder does not say.
        options: What the builder was asked for; for people and for JSON.
        note: What to know of it besides; for people.
        process: The process that it was built for, which others refuse; None where that is not known.

    Raises:
        ValueError: a value is not finite, a flag is not 0 or 1, or a row reads a slot that no earlier row has written.
    """

    columns: Mapping[str, npt.ArrayLike]
    name: str = "custom"
    learned_variance: bool = False
    init_scale: float = 1.0
    order: int = 0
    data_prediction: bool = True
    alphas: npt.ArrayLike = ()
    sigmas: npt.ArrayLike = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    process: ProcessRecord | None = None

    def __post_init__(self) -> None:
        check_keys(dict(self.columns), DEFAULTS, "a coefficient table")
        sizes = {name: np.asarray(values).shape for name, values in self.columns.items()}
        if "t" not in sizes or len(sizes["t"]) != 1 or sizes["t"][0] == 0:
            raise ValueError(f"a table needs a column 't' with one entry per row, got {sizes.get('t')}")
        num_rows = sizes["t"][0]
        full: dict[str, Array] = {}
        for name, default in DEFAULTS.items():
            values = np.asarray(self.columns.get(name, default), dtype=np.float64)
            if values.shape not in ((), (num_rows,)):
                raise ValueError(f"column {name!r} must have {num_rows} entries, got shape {values.shape}")
            array = np.broadcast_to(values, (num_rows,)).copy()
            array.flags.writeable = False
            full[name] = array
        object.__setattr__(self, "columns", full)
        for name in ("alphas", "sigmas"):
            levels = np.array(getattr(self, name), dtype=np.float64)
            if levels.size and levels.shape != (num_rows + 1,):
                raise ValueError(f"{name} must have one entry per state ({num_rows + 1}), got shape {levels.shape}")
            levels.flags.writeable = False
            object.__setattr__(self, name, levels)
        object.__setattr__(self, "options", dict(self.options))
        object.__setattr__(self, "_pushes", self._check_rows())

    def _check_rows(self) -> Array:
        """Check every invariant; return the number of predictions pushed before each row."""
        for name, values in self._columns.items():
            bad = np.isnan(values) if name == "clip" else ~np.isfinite(values)
            if bad.any():
                row = int(np.flatnonzero(bad)[0])
                raise ValueError(f"{name} must be finite, got {values[row]} in row {row} of table {self.name!r}")
        for name in FLAGS:
            if not np.isin(self[name], (0.0, 1.0)).all():
                raise ValueError(f"flag {name!r} must be 0 or 1 in every row")
        self._refuse((self["clip"] <= 0), "clip must be positive (inf for none)")
        self._refuse((self["s"] < 0), "the noise scale s must not be negative")
        idle = self["evaluate"] == 0
        for name in ("pm", "px", "cm", "c0", "bm", "b0", "push"):
            self._refuse(
                idle & (self[name] != 0), f"a row without an evaluation has no prediction, so {name} must be 0"
            )
        saved_before = np.concatenate([[False], np.cumsum(self["save_base"])[:-1] > 0])
        for name in ("cb", "bb"):
            self._refuse(~saved_before & (self[name] != 0), f"{name} reads base before any row saved it")
        pushes = np.concatenate([[0.0], np.cumsum(self["push"])[:-1]])
        for k in (1, 2, 3):
            for name in (f"c{k}", f"b{k}"):
                self._refuse((pushes < k) & (self[name] != 0), f"{name} reads p{k} before {k} predictions were pushed")
        if not np.isfinite(self.init_scale) or self.init_scale < 0:
            raise ValueError(f"init_scale must be finite and not negative, got {self.init_scale}")
        pushes.flags.writeable = False
        return pushes

    def _refuse(self, bad: npt.NDArray[np.bool_], why: str) -> None:
        if bad.any():
            raise ValueError(f"table {self.name!r}, row {int(np.flatnonzero(bad)[0])}: {why}")

    @property
    def _columns(self) -> Mapping[str, Array]:
        return self.columns  # type: ignore[return-value]

    def __getitem__(self, name: str) -> Array:
        """The column `name`, float64 [R], read-only."""
        return self._columns[name]

    def __len__(self) -> int:
        return int(self["t"].size)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CoefficientTable) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    @property
    def num_evaluations(self) -> int:
        """Model evaluations per sample."""
        return int(self["evaluate"].sum())

    @property
    def integer_times(self) -> bool:
        """Whether every t is whole, so that the model is given int64."""
        return bool((self["t"] == np.round(self["t"])).all())

    @property
    def history_depth(self) -> int:
        """How many past predictions must be kept: 0 to 3."""
        return max((k for k in (1, 2, 3) if self[f"c{k}"].any() or self[f"b{k}"].any()), default=0)

    @property
    def uses_base(self) -> bool:
        """Whether any row reads the saved state."""
        return bool(self["cb"].any() or self["bb"].any())

    @property
    def is_stochastic(self) -> bool:
        """Whether any row draws noise."""
        return bool(self["s"].any())

    def built_for(self, diffusion: Diffusion) -> CoefficientTable:
        """The same table, which remembers the process."""
        # Not `replace`, which would check each row once more.
        table = copy.copy(self)
        object.__setattr__(table, "process", ProcessRecord.of(diffusion))
        return table

    def check_process(self, diffusion: Diffusion) -> None:
        """Raise ValueError where the table was built for another process, or other timesteps, than this one."""
        if self.process is not None:
            self.process.check(diffusion, self.name)

    def check_start(self, row: int) -> None:
        """Raise ValueError unless sampling can start at `row` from a state alone (no base, no history)."""
        row = whole_number("start_row", row, low=0, high=len(self))
        if row < len(self):
            tail = {name: values[row:] for name, values in self._columns.items()}
            try:
                CoefficientTable(tail, self.name)
            except ValueError as error:
                raise ValueError(
                    f"sampling cannot start at row {row}, which needs what earlier rows have kept ({error}): "
                    "start at row 0, or build a table over the remaining times"
                ) from None

    def rows(self, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
        """The rows as the kernels read them: [R, ROW_WIDTH], rounded once to `dtype`, in the order of `ROW_FIELDS`.

        The history is a ring of `history_depth` slots. "slot" is where a row's prediction goes; p_k lies k slots before
        it, and "depth" repeats how many slots there are. A prediction that no row reads is not pushed.
        """
        depth = self.history_depth
        out = np.zeros((len(self), ROW_WIDTH), dtype=np.float64)
        for i, name in enumerate((*COEFFICIENTS, *FLAGS)):
            out[:, i] = self[name]
        if depth == 0:
            out[:, ROW_FIELDS.index("push")] = 0.0
        if not self.uses_base:
            out[:, ROW_FIELDS.index("save_base")] = 0.0
        pushes: Array = self._pushes  # type: ignore[attr-defined]
        out[:, ROW_FIELDS.index("slot")] = pushes % depth if depth else 0.0
        out[:, ROW_FIELDS.index("depth")] = depth
        return out.astype(dtype)

    def __str__(self) -> str:
        used = [name for name in (*COEFFICIENTS, *FLAGS) if name == "t" or (self[name] != DEFAULTS[name]).any()]
        columns = {name: self[name] for name in used}
        alphas, sigmas = np.asarray(self.alphas)[:-1], np.asarray(self.sigmas)[:-1]
        if alphas.size:
            with np.errstate(divide="ignore"):
                log_snr = 2 * (np.log(alphas) - np.log(sigmas))
            columns = {"t": columns.pop("t"), "sigma": sigmas, "log_snr": log_snr, **columns}
        cells = [["row", *columns]]
        cells += [[str(r), *(f"{values[r]:.6g}" for values in columns.values())] for r in range(len(self))]
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
        return "\n".join([repr(self), *lines])

    def __repr__(self) -> str:
        note = f"; {self.note}" if self.note else ""
        return f"CoefficientTable({self.name!r}, {len(self)} rows, {self.num_evaluations} evaluations{note})"

    def to_dict(self) -> dict[str, Any]:
        """A plain dict for JSON; columns at their default are left out, an infinite clip is null."""
        columns = {
            name: [None if np.isinf(v) else v for v in self[name].tolist()]
            for name in self._columns
            if name == "t" or (self[name] != DEFAULTS[name]).any()
        }
        return {
            "format": _FORMAT,
            "name": self.name,
            "learned_variance": self.learned_variance,
            "init_scale": self.init_scale,
            "order": self.order,
            "data_prediction": self.data_prediction,
            "alphas": np.asarray(self.alphas).tolist(),
            "sigmas": np.asarray(self.sigmas).tolist(),
            "options": dict(self.options),
            **({"note": self.note} if self.note else {}),
            **({"process": self.process.to_dict()} if self.process else {}),
            "columns": columns,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CoefficientTable:
        """The inverse of `to_dict`. Raises ValueError for unknown keys, another format or broken invariants."""
        arguments = ["name", "learned_variance", "init_scale", "order", "data_prediction"]
        arguments += ["alphas", "sigmas", "options", "note"]
        check_keys(dict(data), ["format", *arguments, "process", "columns"], "a coefficient table")
        if data.get("format") != _FORMAT or "columns" not in data:
            raise ValueError(
                f"a coefficient table needs 'columns' and format {_FORMAT}, got format {data.get('format')!r}"
            )
        columns = {
            name: np.array([np.inf if v is None else v for v in values], dtype=np.float64)
            for name, values in data["columns"].items()
        }
        process = None if data.get("process") is None else ProcessRecord.from_dict(data["process"])
        return cls(columns, process=process, **{key: data[key] for key in arguments if key in data})

    def to_json(self) -> str:
        """JSON text; floats read back exactly."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> CoefficientTable:
        """The inverse of `to_json`. Raises ValueError for text that is not such a table."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"not a coefficient table: {error}") from None
        if not isinstance(data, dict):
            raise ValueError("not a coefficient table: expected a JSON object")
        return cls.from_dict(data)

    def plot(self, ax: Axes | None = None, names: Sequence[str] | None = None) -> Axes:
        """Draw coefficients against the row.

        Args:
            ax: Where to draw; a new figure when None. Needs matplotlib (extra "plot").
            names: Columns to draw; every one that varies when None.
        """
        if ax is None:
            import matplotlib.pyplot as plt

            ax = plt.figure(figsize=(7, 4), layout="constrained").add_subplot()
        varying = [n for n in COEFFICIENTS if n not in ("t", "clip") and np.ptp(self[n]) > 0]
        for number, name in enumerate(varying if names is None else names):
            ax.plot(
                self[name],
                label=name,
                color=f"C{number % 10}",
                ls="--" if number >= 10 else "-",
                marker="." if len(self) < 60 else None,
            )
        # Coefficients of a noisy start are a hundred times the others.
        ax.set_yscale("symlog", linthresh=1.0)
        ax.set_xlabel("row")
        ax.set_ylabel("coefficient")
        ax.set_title(repr(self))
        ax.legend(ncols=2, fontsize="small")
        return ax

    def plot_levels(self, ax: Axes | None = None, **style: Any) -> Axes:
        """Draw the noise levels that the state visits, sigma / alpha on a logarithmic axis, against the row.

        Args:
            ax: Where to draw; a new figure when None. Needs matplotlib (extra "plot").
            style: Passed to `Axes.plot`.

        Raises:
            ValueError: the builder did not say which levels it visits.
        """
        alphas, sigmas = np.asarray(self.alphas), np.asarray(self.sigmas)
        if alphas.size == 0:
            raise ValueError(
                f"the table of {self.name!r} does not say which levels it visits: build it with alphas, sigmas"
            )
        if ax is None:
            import matplotlib.pyplot as plt

            ax = plt.figure(figsize=(7, 4), layout="constrained").add_subplot()
        # A clean image has no place on the axis.
        noisy = np.flatnonzero((sigmas > 0) & (alphas > 0))
        marker = "." if len(self) < 60 else None
        ax.plot(noisy, sigmas[noisy] / alphas[noisy], **({"label": self.name, "marker": marker} | style))
        ax.set_yscale("log")
        ax.set_xlabel("rows done")
        ax.set_ylabel("noise to signal, sigma / alpha")
        return ax
