"""Settings of a training put together and checked: the network, what it is trained on, and how.

Later sources win: the recipe of the network's preset, the file, the flags. What concerns the images' shape is taken
from the data unless it is given.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from fastdiff.cli.classes import class_names
from fastdiff.cli.options import read_yaml
from fastdiff.cli.train_data import DATA_KEYS, open_section
from fastdiff.nets.config import PRESETS, UNetConfig
from fastdiff.nets.recipes import RECIPES, Settings, build_diffusion
from fastdiff.process.arguments import spelt
from fastdiff.process.checks import check_keys, nearest_name, shown
from fastdiff.process.diffusion import Diffusion

if TYPE_CHECKING:
    from fastdiff.data.source import ImageSource
    from fastdiff.training.config import TrainConfig

__all__ = [
    "FIELDS",
    "SECTIONS",
    "TrainingPlan",
    "merged",
    "plan_training",
    "read_config_file",
    "read_option",
    "section_of",
]

SECTIONS = ("out", "init_from", "unet", "diffusion", "data", "train")
"""Of a settings file."""
FIELDS = frozenset(UNetConfig.preset("digits").to_dict())
"""Keys of the section "unet" in the settings of every run; those of other families are there where they count."""

T = TypeVar("T")
R = TypeVar("R")

# How often a training is looked at, and between how many steps at least.
_LOOKS, _FEWEST_STEPS = 10, 100
# What networks of flows and of EDM predict, which give no variance unless one is asked for.
_WITHOUT_VARIANCE = ("velocity", "F")


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


def read_option(option: str, function: Callable[[T], R], value: T) -> R:
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
    sections = {name: section_of(given, name) for name in SECTIONS[2:]}
    check_keys(sections["data"], DATA_KEYS, "section 'data'")
    init_from = None if given.get("init_from") is None else str(given["init_from"])
    preset = sections["unet"].pop("preset", None)
    if init_from is not None and preset is None and not set(sections["unet"]) >= FIELDS:
        network, process = read_option("--init-from", _settings_of, init_from)
        sections["unet"] = network | sections["unet"]
        sections["diffusion"] = process | sections["diffusion"]
    if preset is None and not sections["unet"]:
        preset = "digits" if sections["data"].get("source") == "digits" else "ho-cifar10"
    if preset is not None and not (isinstance(preset, str) and preset in PRESETS):
        raise ValueError(f"unknown {spelt('preset')} {shown(preset)}: {nearest_name(preset, PRESETS)}")
    recipe: Settings = RECIPES.get(preset, {}) if preset is not None else {}
    network = merged(recipe.get("unet", {}), sections["unet"])
    process = merged(recipe.get("diffusion", {}), sections["diffusion"])
    training = merged(recipe.get("train", {}), sections["train"])
    if process.get("prediction") in _WITHOUT_VARIANCE and "variance" not in sections["diffusion"]:
        process.pop("variance", None)
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


def section_of(given: Mapping[str, Any], name: str) -> Settings:
    """A section of the settings, empty where it is not there.

    Raises:
        ValueError: it holds no keys.
    """
    section = given.get(name)
    if section is None:
        return {}
    if not isinstance(section, Mapping):
        raise ValueError(f"section {name!r} must hold keys and values, got {shown(section)}")
    return dict(section)


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> Settings:
    """Both, the second winning; sections are merged key by key."""
    result = dict(first)
    for key, value in second.items():
        before = result.get(key)
        both = isinstance(before, Mapping) and isinstance(value, Mapping) and key in SECTIONS
        result[key] = merged(before, value) if both else value  # type: ignore[arg-type]
    return result
