"""`fastdiff push`: a model to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastdiff.cli.options import ModelArgument, StepsOption, WeightsOption, load_pipeline

__all__ = ["push"]


def push(
    model: ModelArgument,
    name: Annotated[str, typer.Argument(help="On the hub: owner/name. It is made where it does not exist.")],
    private: Annotated[
        bool, typer.Option("--private", help="A model that is made is seen by its owner alone.")
    ] = False,
    license: Annotated[
        str | None, typer.Option(help="The hub's identifier: mit, apache-2.0, cc-by-4.0, other and so on.")
    ] = None,
    figures: Annotated[
        list[Path] | None,
        typer.Option("--figures", help="A folder of `evaluate` or `compare`, for the card. May be given again."),
    ] = None,
    pictures: Annotated[int, typer.Option(min=0, help="Samples on the card.")] = 16,
    sampler: Annotated[str, typer.Option(help="Of the pictures; `fastdiff info samplers` lists them.")] = "ddim",
    steps: StepsOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the pictures.")] = 0,
    keep_card: Annotated[bool, typer.Option("--keep-card", help="Leave the card that is there.")] = False,
    weights: WeightsOption = None,
) -> None:
    """Put a model on the Hugging Face hub, with a card written from its checkpoint: docs/sharing.md.

    Needs a token that may write, of `hf auth login` or in HF_TOKEN.
    """
    from fastdiff.convert.card import check_license, read_figures
    from fastdiff.convert.hub import check_hub_id

    check_hub_id(name)
    check_license(license)
    read_figures(figures or [])
    pipe = load_pipeline(model, "cpu", weights)
    place = pipe.push_to_hub(
        name,
        private=private,
        license=license,
        figures=figures or [],
        pictures=pictures,
        sampler=sampler,
        steps=steps,
        seed=seed,
        keep_card=keep_card,
    )
    typer.echo(f"{place}; next: fastdiff sample hf://{check_hub_id(name)} --num 16 --out samples.png")
