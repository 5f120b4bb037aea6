"""`fastdiff train`: settings from a file and flags, and the run that they describe."""

from __future__ import annotations

import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastdiff.cli.classes import about_classes, class_names
from fastdiff.cli.options import DeviceOption, ThreadsOption, blaming, read_yaml
from fastdiff.cli.train_data import DATA_SETTINGS, parsed_size
from fastdiff.cli.train_plan import (
    FIELDS,
    TrainingPlan,
    merged,
    plan_training,
    read_config_file,
    read_option,
    section_of,
)
from fastdiff.nets.recipes import Settings
from fastdiff.process.arguments import spelling, spelling_also
from fastdiff.process.diffusion import Diffusion

if TYPE_CHECKING:
    from fastdiff.nets.unet import UNet

__all__ = ["train"]

CONFIG_FILE = "config.yaml"
"""What a run folder keeps of its settings."""

# Of a training, as options: what the trainer may advise.
SETTINGS = {
    "learning_rate": "--lr",
    "precision": "--precision",
    "warmup_steps": "--set train.warmup_steps",
    "clip_norm": "--set train.clip_norm",
    "override": "--override",
    "wait_seconds": "--set train.wait_seconds",
}


def train(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="A .yaml, .yml or .toml file.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Of the network; `fastdiff info presets` lists them. If left out: digits for the digits, small-32 on "
            "a CPU, ho-cifar10 on a GPU."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, a folder of images, a .npz, .npy or .zip file, or a folder of CIFAR-10, ImageNet or a data "
            "set of Hugging Face."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run folder; a run in it is continued, by --out alone as well.")
    ] = None,
    init_from: Annotated[
        str | None, typer.Option("--init-from", help="A model whose network and weights a new run starts from.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Training steps in all; digits and small-32 have a number of their own.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", "--lr", help="Of AdamW.")] = None,
    ema_decay: Annotated[
        list[float] | None, typer.Option(help="Decay of the averaged weights; repeat it to keep several averages.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bfloat16.")] = None,
    flip: Annotated[bool | None, typer.Option(help="Mirror half of the images.")] = None,
    label_dropout: Annotated[
        float | None,
        typer.Option(help="Learn the classes, and drop this share of labels, for --guidance later; try 0.1."),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(help="simple, huber, vlb (the bound), or hybrid for a learned variance; what fits, if left out."),
    ] = None,
    weighting: Annotated[
        str | None, typer.Option(help="Of the timesteps: none, min_snr, p2, truncated_snr, or a .npy file of weights.")
    ] = None,
    condition: Annotated[
        str | None,
        typer.Option(help="What the network sees beside the noise: low_res:2, the image at half its size, or inpaint."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order, noise.")] = None,
    size: Annotated[
        str | None, typer.Option(help="Resize and crop pictures to this side, or HEIGHTxWIDTH; crop arrays to it.")
    ] = None,
    channels: Annotated[int | None, typer.Option(help="Of pictures: 1 or 3.")] = None,
    split: Annotated[str | None, typer.Option(help="Of data in parts: train, test, val, ...")] = None,
    held_out: Annotated[
        str | None,
        typer.Option(
            help="Images to evaluate on while it trains: a share of the data, such as 0.1, another split's name, or "
            "where they are; none for none. Of the digits: test, if left out."
        ),
    ] = None,
    picture_every: Annotated[
        int | None,
        typer.Option(
            help="Steps between pictures of samples; 0 for none. A tenth of all, if left out, but at least 100."
        ),
    ] = None,
    evaluate_every: Annotated[
        int | None,
        typer.Option(help="Steps between evaluations; 0 for none. With images held out as the pictures, if left out."),
    ] = None,
    trackers: Annotated[
        list[str] | None,
        typer.Option(
            "--tracker", help="tensorboard (if left out, where it is installed), wandb or trackio. May be repeated."
        ),
    ] = None,
    layout: Annotated[str | None, typer.Option(help="Of an array whose shape allows both: NHWC or NCHW.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Noise schedule; `fastdiff info schedules`.")] = None,
    timesteps: Annotated[int | None, typer.Option("--timesteps", "-T", help="Noising steps.")] = None,
    prediction: Annotated[str | None, typer.Option(help="eps, x0, v, score, velocity or F.")] = None,
    variance: Annotated[str | None, typer.Option(help="fixed_small, fixed_large, learned or learned_range.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting: unet.channels=64. May be repeated.")
    ] = None,
    override: Annotated[
        bool, typer.Option("--override", help="Go on with other settings than before, which the checkpoints record.")
    ] = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print all settings as YAML and leave.")] = False,
) -> None:
    """Train a network on images. The same command again continues a run that was stopped."""
    flags: Settings = {
        "out": None if out is None else str(out),
        "init_from": init_from,
        "unet": {"preset": preset},
        "diffusion": {
            "schedule": schedule,
            "timesteps": timesteps,
            "prediction": prediction,
            "variance": variance,
        },
        "data": {
            "source": data,
            "size": None if size is None else parsed_size(size),
            "channels": channels,
            "split": split,
            "layout": layout,
            "held_out": held_out,
        },
        "train": {
            "steps": steps,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "ema_decay": ema_decay or None,
            "precision": precision,
            "flip": flip,
            "label_dropout": label_dropout,
            "loss": loss,
            "weighting": weighting,
            "condition": condition,
            "seed": seed,
            "picture_every": picture_every,
            "evaluate_every": evaluate_every,
            "trackers": trackers or None,
        },
    }
    given = _without_none(flags)
    for text in setting or []:
        given = merged(given, _parsed_setting(text))
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: give a folder")
    before = _settings_before(given) if config is None else read_option("--config", read_config_file, config)
    given = merged(before, given)
    with _telling(), spelling_also(DATA_SETTINGS), blaming("--set", setting):
        plan = plan_training(_with_preset(given, device))
    if print_config:
        typer.echo(plan.to_yaml(), nl=False)
        return
    if plan.out is None:
        raise ValueError("training needs a folder to write to: give --out, or the key 'out' in the file")
    _join_and_run(plan, plan.out, device, threads, override=override)


def _telling() -> AbstractContextManager[None]:
    """Within the block, other processes of this training hear of what is wrong at this one alone, such as its data."""
    if "WORLD_SIZE" not in os.environ:
        return nullcontext()
    from fastdiff.training.launch import telling

    return telling()


def _join_and_run(plan: TrainingPlan, out: Path, device_name: str, threads: int | None, *, override: bool) -> None:
    """Run, as one of the processes that a launcher has started, or alone."""
    from fastdiff.cli.environment import resolve_device
    from fastdiff.training.launch import Place, joined, own_device, share_threads

    place = Place.of_environment()
    device = own_device(resolve_device(device_name), place)
    if threads is None:
        share_threads(place)
    with spelling_also(SETTINGS), joined(place, device, plan.train.wait_seconds):
        _run(plan, out, device, place.rank, place.size, override=override)


def _run(plan: TrainingPlan, out: Path, device: str, rank: int, processes: int, *, override: bool) -> None:
    import torch

    from fastdiff.cli.progress import Bars, duration
    from fastdiff.files.atomic import write_text
    from fastdiff.files.checkpoint import list_checkpoints
    from fastdiff.nets.unet import UNet
    from fastdiff.training.trainer import Trainer

    def say(text: str) -> None:
        if rank == 0:
            typer.echo(text)

    torch.manual_seed(plan.train.seed)
    unet = UNet(plan.unet).to(device)
    if plan.init_from is not None and not list_checkpoints(out):
        _take_weights(unet, plan.diffusion, plan.init_from)
    trainer = Trainer(unet, plan.diffusion, plan.data, plan.train, out, override=override, held_out=plan.held_out)
    size = sum(parameter.numel() for parameter in unet.parameters())
    network = plan.settings["unet"].get("preset", "a network")
    shared = f", {processes} processes of {torch.get_num_threads()} threads" if processes > 1 else ""
    say(f"{plan.data!r}; {network} of {size:,} parameters on {device}{shared}")
    if plan.held_out is not None:
        evaluated = min(len(plan.held_out), plan.train.num_evaluated)
        say(f"{len(plan.held_out):,} images are held out, and {evaluated:,} of them evaluated")
    for line in about_classes(plan.data, plan.unet.num_classes):
        say(line)
    if trainer.step:
        say(f"going on from step {trainer.step:,} of {plan.train.steps:,}")
    elif plan.init_from is not None:
        say(f"starting from the weights of {plan.init_from}")
    for name, (before, now) in trainer.changes.items():
        say(f"from here on {name} is {now}, it was {before}")

    def keep_settings() -> None:
        write_text(out / CONFIG_FILE, plan.to_yaml())

    with Bars() if rank == 0 else nullcontext() as bars:
        progress, on_step = (None, None) if bars is None else bars.training("training", plan.train, trainer.step)
        with spelling(SETTINGS | DATA_SETTINGS, ()):
            result = trainer.run(progress=progress, on_start=keep_settings, on_step=on_step)
    for note in result.notes:
        say(note)
    taken = result.step - result.resumed_from
    say(f"{taken:,} steps in {duration(result.seconds)}; {result.step:,} in all: {result.checkpoint}")
    if result.report is not None:
        say(f"what it looked like: {result.report}")
    say(f"next: {_next(plan, out)}")


def _next(plan: TrainingPlan, out: Path) -> str:
    """The command that shows what was learnt."""
    source = plan.settings["data"]["source"]
    if plan.train.condition is None:
        guided = " --guidance 3 --label " + class_names(plan.data)[0] if plan.train.label_dropout else ""
        return f"fastdiff sample {out}{guided} --out samples.png"
    if plan.train.condition == "inpaint":
        return f"fastdiff edit inpaint {out} {source} --hole 0,0,{plan.data.shape[1] // 2},{plan.data.shape[2]}"
    return f"fastdiff edit upscale {out} {source}"


def _settings_before(given: Settings) -> Settings:
    """The settings of the run in the folder, where nobody says what to train on."""
    out = given.get("out")
    path = None if out is None else Path(str(out), CONFIG_FILE)
    says = any(given.get(key) for key in ("init_from", "data")) or "preset" in section_of(given, "unet")
    return {} if path is None or says or not path.is_file() else read_config_file(path)


def _with_preset(given: Settings, device: str) -> Settings:
    """The settings with the preset of a run that has begun in the folder, or else that for the data and the device."""
    from fastdiff.cli.environment import resolve_device

    network = section_of(given, "unet")
    if "preset" in network or "init_from" in given or set(network) >= FIELDS:
        return given
    kept = None if given.get("out") is None else Path(str(given["out"]), CONFIG_FILE)
    if kept is not None and kept.is_file():
        name = section_of(read_config_file(kept), "unet").get("preset")
        # Runs of earlier versions do not say which.
        if name is None:
            return given
    elif section_of(given, "data").get("source") == "digits":
        name = "digits"
    else:
        name = "small-32" if resolve_device(device) == "cpu" else "ho-cifar10"
    return merged({"unet": {"preset": name}}, given)


def _take_weights(unet: UNet, diffusion: Diffusion, model: str) -> None:
    from fastdiff.pipeline import Pipeline

    found = Pipeline.from_pretrained(model)
    own, theirs = unet.state_dict(), found.unet.state_dict()
    wrong = [name for name in own if name not in theirs or theirs[name].shape != own[name].shape]
    wrong += [name for name in theirs if name not in own]
    if wrong:
        raise ValueError(
            f"the weights of {model} do not fit this network ({', '.join(wrong[:5])}): leave out the preset and the "
            "settings of the network, which are then those of the model"
        )
    unet.load_state_dict(theirs)
    if found.diffusion != diffusion:
        warnings.warn(
            f"{model} was trained on another process (prediction {found.diffusion.prediction}, "
            f"{found.diffusion.num_timesteps} timesteps) than this run ({diffusion.prediction}, "
            f"{diffusion.num_timesteps} timesteps)",
            stacklevel=2,
        )


def _without_none(settings: Settings) -> Settings:
    kept = {key: _without_none(value) if isinstance(value, dict) else value for key, value in settings.items()}
    return {key: value for key, value in kept.items() if value is not None and value != {}}


def _parsed_setting(text: str) -> Settings:
    """`section.key=value` as a section with one key; the value is read as YAML."""
    name, equals, value = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not equals or not dot or not key:
        raise ValueError(f"--set takes section.key=value, for example unet.channels=64, got {text!r}")
    return {section: {key: read_yaml(value, f"--set {text}")}}
