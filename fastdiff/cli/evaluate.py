"""`fastdiff evaluate`: sets of samples held against a reference."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastdiff.cli.options import DeviceOption, ThreadsOption
from fastdiff.cli.output import check_writable
from fastdiff.process.arguments import spelt
from fastdiff.process.checks import shown

if TYPE_CHECKING:
    from fastdiff.data.opening import DataOptions
    from fastdiff.evaluation import EvaluationReport, Gaussian, ImageSet

__all__ = ["FeaturesOption", "check_folder", "evaluate", "image_set", "names_of", "reference_of", "told_by_bars"]

FeaturesOption = Annotated[
    str,
    typer.Option(
        help="What images are compared by: builtin (fixed random weights, for quick looks), pixels, inception:FILE, "
        "dinov2:FOLDER, or a TorchScript module (.pt). Nothing is downloaded."
    ),
]


def evaluate(
    samples: Annotated[
        list[str],
        typer.Argument(
            help="Sets of samples, such as of three seeds: folders of `fastdiff generate`, .npz, .zip or .parquet "
            "files, folders of pictures."
        ),
    ],
    reference: Annotated[
        str,
        typer.Argument(help="Images, as above or as `fastdiff train --data` takes them; or a .npz of mu and sigma."),
    ],
    metrics: Annotated[str, typer.Option(help="Of fid, kid, prdc and is, with commas between.")] = "fid,kid,prdc",
    features: FeaturesOption = "builtin",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for evaluation.json, .csv and .png; none, if left out.")
    ] = None,
    compared: Annotated[
        int, typer.Option(min=1, help="Images of a set that kid and prdc compare one by one, drawn by --seed.")
    ] = 10_000,
    neighbours: Annotated[int, typer.Option(min=1, help="Of prdc: how many make a ball.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn of the sets.")] = 0,
    split: Annotated[str | None, typer.Option(help="Of the reference, where it has some: train, test.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Of pictures: crop and resize them to this.")] = None,
    channels: Annotated[int | None, typer.Option(help="Of pictures: 1 for grey, 3 for colour.")] = None,
    save_statistics: Annotated[
        Path | None, typer.Option(help="A .npz for mu and sigma of the reference, which is a reference itself.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that the network sees at a time.")] = 250,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what lies at --out.")] = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Measure samples against a reference: Fréchet and kernel distance, precision and recall, inception score."""
    from fastdiff.cli.environment import resolve_device
    from fastdiff.cli.output import check_free
    from fastdiff.data.opening import DataOptions
    from fastdiff.evaluation import EvaluationReport, EvaluationSettings, Gaussian, Measured, open_features
    from fastdiff.evaluation import evaluate as measured
    from fastdiff.evaluation.report import FILES

    settings = EvaluationSettings(tuple(names_of(metrics, "metrics")), batch_size, neighbours, compared, seed)
    check_folder(out, FILES, overwrite=overwrite)
    if save_statistics is not None:
        check_free(save_statistics, (".npz",), overwrite=overwrite, option="--save-statistics")
        check_writable(save_statistics.parent, save_statistics.name)
    pixels: Any = channels
    held = reference_of(reference, DataOptions(split=split, size=size, channels=pixels))
    sets = [image_set(source, DataOptions(size=size, channels=pixels)) for source in samples]
    network = open_features(features, sets[0].shape[2], resolve_device(device))
    with told_by_bars() as told:
        scores, found = measured(sets, held, network, settings, progress=told)
    digest = found.sha256 if isinstance(found, Measured) else hashlib.sha256(Path(reference).read_bytes()).hexdigest()
    report = EvaluationReport(scores, found, reference, digest, network, settings)
    _say(report)
    if save_statistics is not None:
        statistics = found if isinstance(found, Gaussian) else None
        if statistics is None:
            assert isinstance(found, Measured)
            if found.moments is None:
                raise ValueError("--save-statistics needs fid among --metrics")
            statistics = found.moments.gaussian()
        typer.echo(f"statistics: {statistics.save(save_statistics)}")
    if out is not None:
        for path in report.write(out):
            typer.echo(str(path))


def image_set(source: str, options: DataOptions) -> ImageSet:
    """Images of a generation's folder, a Parquet file, or of whatever a training reads."""
    from fastdiff.evaluation import ImageSet, open_set
    from fastdiff.generation.reading import is_stored, stored_images

    # The digits of scikit-learn; a folder of that name is ./digits.
    if source == "digits" or not is_stored(source):
        return open_set(source, options)
    stored = stored_images(source)
    return ImageSet(stored.source, stored.num, stored.shape, stored.batches, stored.about)


def reference_of(source: str, options: DataOptions) -> ImageSet | Gaussian:
    """The same, or statistics."""
    from fastdiff.evaluation import open_reference
    from fastdiff.generation.reading import is_stored

    own = source != "digits" and is_stored(source)
    return image_set(source, options) if own else open_reference(source, options)


def names_of(text: str, option: str) -> list[str]:
    """Names with commas between.

    Raises:
        ValueError: one is empty.
    """
    names = [part.strip() for part in text.split(",")]
    if not all(names):
        raise ValueError(f"{spelt(option)} must be names with commas between, got {shown(text)}")
    return names


def check_folder(out: Path | None, files: tuple[str, ...], *, overwrite: bool, name: str = "--out") -> None:
    """Raise ValueError unless files of these names can be made in the folder and replace none."""
    if out is None:
        return
    if out.exists() and not out.is_dir():
        raise ValueError(f"{name} {out} is a file: give a folder")
    there = [file for file in files if (out / file).exists()]
    if there and not overwrite:
        raise ValueError(f"{name} {out} holds {there[0]} already: choose another folder, or give --overwrite")
    check_writable(out)


@contextmanager
def told_by_bars() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """From what is read to a bar of its own."""
    from fastdiff.cli.progress import Bars

    with Bars() as bars:

        def told(name: str) -> Callable[[int, int], None]:
            update: Any = None

            def tell(done: int, total: int) -> None:
                nonlocal update
                update = update or bars.counting(name, total)
                update(done)

            return tell

        yield told


def _say(report: EvaluationReport) -> None:
    from rich.console import Console
    from rich.table import Table

    from fastdiff.evaluation.report import CALLED

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    several = len(report.scores) > 1
    for place, one in enumerate(report.scores):
        seed = one.samples.about.get("seed")
        name = f"set {place + 1}" if seed is None else f"seed {seed}"
        table.add_column(name if several else f"{one.samples.num:,} images", no_wrap=True)
    if several:
        table.add_column("least")
        table.add_column("spread")
    for name in report.scores[0].values:
        cells = []
        for one in report.scores:
            # Beside several sets their spread is shown; the errors of each are in the files.
            error = f" ± {one.errors[name]:.2g}" if name in one.errors and not several else ""
            cells.append(f"{one.values[name]:.5g}{error}")
        if several:
            spread = report.spreads[name]
            cells += [f"{spread.least:.5g}", f"{spread.spread:.2g}"]
        table.add_row(CALLED[name], *cells)
    console = Console()
    console.print(table)
    about = report.features.about
    num = report.to_dict()["reference"]["num"]
    count = "" if num is None else f", {num:,} images"
    lines = [
        f"reference: {report.reference_source}{count}, sha256 {report.reference_sha256[:16]}",
        f"features: {report.features.name}, resize: {about['resize']}",
    ]
    lines += [about["note"]] if "note" in about else []
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
