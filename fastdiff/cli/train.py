"""`fastdiff train`: settings from presets, a file and flags, put together and checked; then training.

Later sources win: the recipe of the network's preset, the file, the flags. What concerns the images' shape is taken
from the data unless it is given.
"""

from __future__ import annotations

import os
import tomllib
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
import yaml

from fastdiff.cli.classes import about_classes, class_names
from fastdiff.cli.options import DeviceOption, ThreadsOption, blaming, read_yaml
from fastdiff.cli.train_data import DATA_KEYS, DATA_SETTINGS, open_section, parsed_size
from fastdiff.nets.config import PRESETS, UNetConfig
from fastdiff.nets.recipes import RECIPES, Settings, build_diffusion
from fastdiff.process.arguments import spelling, spelling_also, spelt
from fastdiff.process.checks import check_keys, nearest_name, shown
from fastdiff.process.diffusion import Diffusion

if TYPE_CHECKING:
    from fastdiff.data.source import ImageSource
    from fastdiff.nets.unet import UNet
    from fastdiff.training.config import TrainConfig

__all__ = ["SECTIONS", "TrainingPlan", "plan_training", "read_config_file", "train"]

SECTIONS = ("out", "init_from", "unet", "diffusion", "data", "train")
CONFIG_FILE = "config.yaml"
"""What a run folder keeps of its settings."""

_FIELDS = {field.name for field in fields(UNetConfig)}

T = TypeVar("T")
R = TypeVar("R")

# Of a training, as options: what the trainer may advise.
SETTINGS = {
    "learning_rate": "--lr",
    "precision": "--precision",
    "warmup_steps": "--set train.warmup_steps",
    "clip_norm": "--set train.clip_norm",
    "override": "--override",
    "wait_seconds": "--set train.wait_seconds",
}
# How often a training is looked at, and between how many steps at least.
_LOOKS, _FEWEST_STEPS = 10, 100


class _Dumper(yaml.SafeDumper):
    """YAML's safe dumper without aliases, which `read_yaml` does not read."""

    def ignore_aliases(self, data: Any) -> bool:
        """Always."""
        return True


@dataclass(frozen=True, eq=False)
class TrainingPlan:
    """Everything that a training run needs, checked.

    Attributes:
        unet: The network's shape.
        diffusion: What it is trained on.
        data: The images to train on.
        held_out: Those to evaluate on while it trains; None for none.
        train: Settings of the training.
        out: Run folder; None where it was not given.
        init_from: Model whose weights a new run starts from; None for weights drawn from the seed.
        settings: All of it as plain values; written as YAML, it is a file for `--config`.
    """

    unet: UNetConfig
    diffusion: Diffusion
    data: ImageSource
    held_out: ImageSource | None
    train: TrainConfig
    out: Path | None
    init_from: str | None
    settings: Settings

    def to_yaml(self) -> str:
        """The settings as YAML."""
        return yaml.dump(self.settings, None, _Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None)


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
        given = _merged(given, _parsed_setting(text))
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: give a folder")
    before = _settings_before(given) if config is None else _read("--config", read_config_file, config)
    given = _merged(before, given)
    with _telling(), spelling_also(DATA_SETTINGS), blaming("--set", setting):
        plan = plan_training(_with_preset(given, device))
    if print_config:
        typer.echo(plan.to_yaml(), nl=False)
        return
    if plan.out is None:
        raise ValueError("training needs a folder to write to: give --out, or the key 'out' in the file")
    _join_and_run(plan, plan.out, device, threads, override=override)


def read_config_file(path: str | Path) -> Settings:
    """Settings from a YAML or TOML file; sections and keys are checked later, by `plan_training`.

    Raises:
        ValueError: the file is missing, has another suffix, cannot be read, or does not hold sections.
    """
    path = Path(path)
    if path.suffix.lower() not in (".yaml", ".yml", ".toml"):
        raise ValueError(f"{path}: a configuration is a .yaml, .yml or .toml file")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        found = tomllib.loads(text) if path.suffix.lower() == ".toml" else read_yaml(text, str(path))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected the sections {', '.join(SECTIONS)}, got {type(found).__name__}")
    return found


def _read(option: str, function: Callable[[T], R], value: T) -> R:
    """What a function makes of the value of an option; errors name the option."""
    try:
        return function(value)
    except ValueError as error:
        raise ValueError(f"{option} {error}") from error


def plan_training(given: Mapping[str, Any]) -> TrainingPlan:
    """Put settings together, load the data, and fit the network to it.

    Args:
        given: Sections "unet", "diffusion", "data" and "train", and "out". "unet" may hold "preset"; without one, what
            it leaves open is as in "ho-cifar10".

    Raises:
        ValueError: unknown keys (the nearest is suggested), or settings that are missing or do not fit each other.
    """
    from fastdiff.training.config import TrainConfig
    from fastdiff.training.objectives import check_objective

    given = dict(given)
    check_keys(given, SECTIONS, "the configuration")
    sections = {name: _section(given, name) for name in SECTIONS[2:]}
    check_keys(sections["data"], DATA_KEYS, "section 'data'")
    init_from = None if given.get("init_from") is None else str(given["init_from"])
    preset = sections["unet"].pop("preset", None)
    if init_from is not None and preset is None and not set(sections["unet"]) >= _FIELDS:
        network, process = _read("--init-from", _settings_of, init_from)
        sections["unet"] = network | sections["unet"]
        sections["diffusion"] = process | sections["diffusion"]
    if preset is None and not sections["unet"]:
        preset = "digits" if sections["data"].get("source") == "digits" else "ho-cifar10"
    if preset is not None and not (isinstance(preset, str) and preset in PRESETS):
        raise ValueError(f"unknown {spelt('preset')} {shown(preset)}: {nearest_name(preset, PRESETS)}")
    recipe: Settings = RECIPES.get(preset, {}) if preset is not None else {}
    network = _merged(recipe.get("unet", {}), sections["unet"])
    process = _merged(recipe.get("diffusion", {}), sections["diffusion"])
    training = _merged(recipe.get("train", {}), sections["train"])
    diffusion, process = build_diffusion(process)
    images, held_out, source = open_section(sections["data"], given.get("out"))
    base = PRESETS[preset] if preset is not None else UNetConfig()
    if training.get("label_dropout") and images.labels is not None:
        # The classes of the data, and the null class behind them.
        network.setdefault("num_classes", len(class_names(images)) + 1)
    unet = _network(base, network, images, diffusion, training.get("condition"))
    if images.source.startswith("digits"):
        training.setdefault("flip", False)
    training.setdefault("loss", "hybrid" if diffusion.learned_variance else "simple")
    check_keys(training, [field.name for field in fields(TrainConfig)], "section 'train'")
    if "steps" not in training:
        raise ValueError("how long to train? give --steps, or the key 'steps' in section 'train'")
    if isinstance(training["steps"], int):
        every = max(_FEWEST_STEPS, training["steps"] // _LOOKS)
        training = {"picture_every": every, "evaluate_every": 0 if held_out is None else every} | training
    settings = TrainConfig.from_dict(training)
    check_objective(diffusion, settings)
    out = given.get("out")
    plain: Settings = {} if out is None else {"out": str(out)}
    plain |= {} if init_from is None else {"init_from": init_from}
    named: Settings = {} if preset is None else {"preset": preset}
    plain |= {"unet": named | unet.to_dict(), "diffusion": process, "data": source, "train": settings.to_dict()}
    return TrainingPlan(
        unet, diffusion, images, held_out, settings, None if out is None else Path(str(out)), init_from, plain
    )


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
    says = any(given.get(key) for key in ("init_from", "data")) or "preset" in _section(given, "unet")
    return {} if path is None or says or not path.is_file() else read_config_file(path)


def _with_preset(given: Settings, device: str) -> Settings:
    """The settings with the preset of a run that has begun in the folder, or else that for the data and the device."""
    from fastdiff.cli.environment import resolve_device

    network = _section(given, "unet")
    if "preset" in network or "init_from" in given or set(network) >= _FIELDS:
        return given
    kept = None if given.get("out") is None else Path(str(given["out"]), CONFIG_FILE)
    if kept is not None and kept.is_file():
        name = _section(read_config_file(kept), "unet").get("preset")
        # Runs of earlier versions do not say which.
        if name is None:
            return given
    elif _section(given, "data").get("source") == "digits":
        name = "digits"
    else:
        name = "small-32" if resolve_device(device) == "cpu" else "ho-cifar10"
    return _merged({"unet": {"preset": name}}, given)


def _settings_of(model: str) -> tuple[Settings, Settings]:
    """The network of a model, and the process that it was trained on, as far as a name says it."""
    from fastdiff.pipeline import Pipeline

    found = Pipeline.from_pretrained(model)
    diffusion = found.diffusion
    schedule = diffusion.schedule.to_dict()
    process: Settings = {"prediction": diffusion.prediction, "variance": diffusion.variance}
    if diffusion.prediction == "F":
        process["sigma_data"] = diffusion.sigma_data
    if "betas" not in schedule:
        options = schedule.get("options", {})
        process["schedule"] = {"name": schedule["name"], **options} if options else schedule["name"]
        process["timesteps"] = schedule["num_timesteps"]
    return found.unet.config.to_dict(), process


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


def _network(
    base: UNetConfig, given: Settings, images: ImageSource, diffusion: Diffusion, condition: Any
) -> UNetConfig:
    """The network, with channels and size from the data and what it sees beside them, where they are not given."""
    from fastdiff.nets.conditions import ImageCondition

    channels, height, _ = images.shape
    seen = 0 if condition is None else ImageCondition(condition).channels(channels)
    fields = {**base.to_dict(), **given}
    fitted: Settings = {
        "in_channels": channels + seen,
        "out_channels": diffusion.model_channels(channels),
        "image_size": height,
    }
    fields |= {key: value for key, value in fitted.items() if key not in given}
    if "attention_resolutions" not in given and "channel_mult" not in given and fields["image_size"] != base.image_size:
        # At the depth where the preset has it.
        sizes = [fields["image_size"] >> level for level in range(len(base.channel_mult))]
        fields["attention_resolutions"] = [sizes[base.level_sizes.index(n)] for n in base.attention_resolutions]
    return UNetConfig.from_dict(fields)


def _section(given: Mapping[str, Any], name: str) -> Settings:
    section = given.get(name)
    if section is None:
        return {}
    if not isinstance(section, Mapping):
        raise ValueError(f"section {name!r} must hold keys and values, got {shown(section)}")
    return dict(section)


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> Settings:
    """Both, the second winning; sections are merged key by key."""
    merged = dict(first)
    for key, value in second.items():
        before = merged.get(key)
        both = isinstance(before, Mapping) and isinstance(value, Mapping) and key in SECTIONS
        merged[key] = _merged(before, value) if both else value  # type: ignore[arg-type]
    return merged


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
