"""Configuration of the U-Net and the published networks as presets.

One `UNetConfig` covers five papers. They differ in small things that no weight file records:

| | Ho (2020) | improved-diffusion | guided-diffusion |
|---|---|---|---|
| time embedding | sin, cos over half - 1 | cos, sin over half | cos, sin over half |
| norm epsilon | 1e-6 | 1e-5 | 1e-5 |
| padding before a strided conv | right and bottom | all sides | none: residual blocks resample |
| time enters a block by | addition | scale and shift | scale and shift |
| rows of the packed qkv | separate | legacy | legacy or new |

Song's DDPM++ and NCSN++ as EDM has them (`_song`) are Ho's conventions with residual blocks that resample, sums divided
by sqrt(2), and what the last fields of `UNetConfig` say; EDM's ADM is guided-diffusion's with rows of its own order.

Sources: Ho, Jain, Abbeel (2020), arXiv:2006.11239, appendix B; Nichol, Dhariwal (2021), arXiv:2102.09672;
Dhariwal, Nichol (2021), arXiv:2105.05233, and the flags in the README files of the last two's code; Song et al. (2021),
arXiv:2011.13456, appendix H; Karras et al. (2022), arXiv:2206.00364, appendix F and table 7.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

from fastdiff.process.checks import whole_number

if TYPE_CHECKING:
    from fastdiff.tensors import QkvLayout

__all__ = [
    "EDM_PRESETS",
    "PRESETS",
    "DecoderAttention",
    "DownsamplePadding",
    "LabelPlace",
    "TimeEmbedding",
    "UNetConfig",
]

TimeEmbedding = Literal["sin_cos", "cos_sin", "fourier"]
DownsamplePadding = Literal["asymmetric", "symmetric"]
DecoderAttention = Literal["all", "last"]
LabelPlace = Literal["behind_mlp", "before_mlp"]


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """The shape and the conventions of one U-Net.

    Attributes:
        image_size: Height and width in pixels that `attention_resolutions` refers to. The network itself takes any
            height and width divisible by 2^(levels - 1).
        in_channels: Channels of the input image.
        out_channels: Channels of the output; twice the image's where the variance is learned.
        channels: Base width. The time embedding has `channels` entries, its MLP 4 * channels.
        channel_mult: Width of each level in units of `channels`, full resolution first. Fractions are allowed where
            the width is whole.
        num_res_blocks: Residual blocks per level on the way down; one more per level on the way up.
        attention_resolutions: Feature-map sizes, in pixels at `image_size`, whose residual blocks are followed by
            attention. The middle of the network always has attention.
        dropout: Probability in [0, 1) before the last convolution of a residual block.
        num_heads: Attention heads; ignored where `head_channels` is given.
        head_channels: Channels per head, or None to use `num_heads`.
        norm_groups: Groups of every group norm.
        norm_eps: Epsilon of every group norm.
        time_embedding: "sin_cos": sines then cosines, frequencies exp(-log(1e4) * i / (half - 1)) (Ho).
            "cos_sin": cosines then sines, frequencies exp(-log(1e4) * i / half) (OpenAI).
            "fourier": sines then cosines, frequencies 2 pi times random numbers that the network keeps (Song).
        downsample_padding: "asymmetric": one row below and one column to the right (Ho, as TensorFlow's SAME).
            "symmetric": one on each side (OpenAI). Read only where a strided convolution downsamples.
        scale_shift_norm: If true the embedding enters as norm(h) * (1 + scale) + shift, else as norm(h + embedding).
        resblock_updown: If true residual blocks change the resolution (ADM), else `conv_resample` says how.
        conv_resample: If true a 3x3 convolution changes the resolution, else average pooling and nearest neighbour.
        num_classes: Number of labels, whose embedding is added to the time embedding, or None.
        qkv_layout: Order of the 3C rows of the packed qkv weight. "separate" and "new": (q k v), head, channel.
            "legacy": head, (q k v), channel. "edm": head, channel, (q k v).
        time_channels: Entries of the time embedding before its MLP, or None for `channels`.
        stem_channels: Width of the first convolution, or None for that of the first level.
        skip_scale: What every sum of a residual branch and its input is multiplied by, in (0, 1]. Song: 1/sqrt(2).
        resample_filter: Of residual blocks that resample: (1, 1), means of 2x2 pixels and repeated pixels, or
            (1, 3, 3, 1), which both resamplings filter with in each direction, with zeros outside of the image.
        resample_projection: If true residual blocks that resample have a 1x1 convolution beside their branch.
        decoder_attention: On the way up: "all" residual blocks at `attention_resolutions` are followed by attention, or
            the "last" of each level.
        input_pyramid: If true a filtered 3x3 convolution of the image, and then of each level's, joins the next level.
        label_place: Where the labels' embedding is added to the time's: "behind_mlp", with 4 * channels entries, or
            "before_mlp", with `time_channels`.
        augment_channels: Entries of the augmentation labels, whose linear layer is added before the MLP, or None.
        min_group_channels: A norm has `norm_groups` groups, or fewer where they would have fewer channels than this.

    The fields from `time_channels` on are those of Song et al. (2021) and Karras et al. (2022).

    Raises:
        ValueError: A field is out of range or contradicts another one.
    """

    image_size: int = 32
    in_channels: int = 3
    out_channels: int = 3
    channels: int = 128
    channel_mult: tuple[float, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1
    num_heads: int = 1
    head_channels: int | None = None
    norm_groups: int = 32
    norm_eps: float = 1e-6
    time_embedding: TimeEmbedding = "sin_cos"
    downsample_padding: DownsamplePadding = "asymmetric"
    scale_shift_norm: bool = False
    resblock_updown: bool = False
    conv_resample: bool = True
    num_classes: int | None = None
    qkv_layout: QkvLayout = "separate"
    time_channels: int | None = None
    stem_channels: int | None = None
    skip_scale: float = 1.0
    resample_filter: tuple[int, ...] = (1, 1)
    resample_projection: bool = False
    decoder_attention: DecoderAttention = "all"
    input_pyramid: bool = False
    label_place: LabelPlace = "behind_mlp"
    augment_channels: int | None = None
    min_group_channels: int = 1

    def __post_init__(self) -> None:
        for name in (*_COUNTS, *_OPTIONAL_COUNTS):
            value = getattr(self, name)
            if name in _COUNTS or value is not None:
                object.__setattr__(self, name, whole_number(name, value, low=1, strict=True))
        for name in _FLAGS:
            _check_flag(name, getattr(self, name))
        for name, choices in _CHOICES.items():
            _check_choice(name, getattr(self, name), choices)
        for name in ("channel_mult", "attention_resolutions", "resample_filter"):
            object.__setattr__(self, name, _as_tuple(name, getattr(self, name)))
        sizes = (whole_number("attention_resolutions", size, low=1, strict=True) for size in self.attention_resolutions)
        object.__setattr__(self, "attention_resolutions", tuple(sizes))
        if not (_is_number(self.dropout) and 0 <= self.dropout < 1):
            raise ValueError(f"dropout must be a number in [0, 1), got {self.dropout!r}")
        if not (_is_number(self.norm_eps) and 0 < self.norm_eps < 1):
            raise ValueError(f"norm_eps must be a number in (0, 1), got {self.norm_eps!r}; Ho used 1e-6, OpenAI 1e-5")
        if not (_is_number(self.skip_scale) and 0 < self.skip_scale <= 1):
            raise ValueError(f"skip_scale must be a number in (0, 1], got {self.skip_scale!r}; Song's is 0.5 ** 0.5")
        self._check_resampling()
        self._check_widths()
        self._check_attention()

    @property
    def of_song(self) -> dict[str, Any]:
        """The fields of Song's and EDM's networks, `time_channels` and those behind it, that are not at their default.

        Networks of Ho's and OpenAI's papers have none.
        """
        found = {
            field.name: getattr(self, field.name)
            for field in _SONG_FIELDS
            if field.default != getattr(self, field.name)
        }
        return found | ({"time_embedding": self.time_embedding} if self.time_embedding == "fourier" else {})

    @property
    def waves(self) -> int:
        """Entries of the time embedding before its MLP."""
        return self.channels if self.time_channels is None else self.time_channels

    @property
    def stem_width(self) -> int:
        """Width of the first convolution in channels."""
        return self.level_channels[0] if self.stem_channels is None else self.stem_channels

    def groups(self, channels: int) -> int:
        """Groups of a norm of `channels` channels."""
        return min(self.norm_groups, channels // self.min_group_channels)

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Width of each level in channels, full resolution first."""
        return tuple(round(self.channels * mult) for mult in self.channel_mult)

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Feature-map size of each level in pixels at `image_size`, full resolution first."""
        return tuple(self.image_size >> level for level in range(len(self.channel_mult)))

    @property
    def size_divisor(self) -> int:
        """What height and width of an input must be divisible by."""
        return 1 << (len(self.channel_mult) - 1)

    def heads(self, channels: int) -> int:
        """Number of attention heads in a layer of `channels` channels."""
        return self.num_heads if self.head_channels is None else channels // self.head_channels

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain Python values that JSON and YAML can hold; `from_dict` is the inverse.

        Fields of Song's and EDM's networks are left out where they are at their default, as before there were any.
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        song = {field.name for field in _SONG_FIELDS} - set(self.of_song)
        values = {name: value for name, value in values.items() if name not in song}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> UNetConfig:
        """Configuration from field names and values; fields left out keep their defaults.

        Args:
            values: Field names to values, for example from `to_dict` or a JSON file.

        Raises:
            ValueError: A key is not a field (the message names the nearest one), or a value is invalid.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(f"unknown UNetConfig field {key!r}; {_suggest(key, known)}")
        return cls(**values)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> UNetConfig:
        """A published network by its name in `PRESETS` or `EDM_PRESETS`, with some fields replaced.

        Args:
            name: Key of one of them.
            **overrides: Field names and values that replace the preset's.

        Raises:
            ValueError: The name or an override is unknown, or the result is invalid.
        """
        known = PRESETS | EDM_PRESETS
        if name not in known:
            raise ValueError(f"unknown preset {name!r}; {_suggest(name, known)}")
        return cls.from_dict({**known[name].to_dict(), **overrides})

    def _check_widths(self) -> None:
        if not self.channel_mult:
            raise ValueError("channel_mult must name at least one level, got ()")
        for mult in self.channel_mult:
            if not (_is_number(mult) and math.isfinite(mult) and mult > 0):
                raise ValueError(f"channel_mult must hold positive numbers, got {mult!r} in {self.channel_mult}")
            width = self.channels * mult
            groups = self.groups(round(width))
            if abs(width - round(width)) > 1e-6 or groups == 0 or round(width) % groups:
                raise ValueError(
                    f"channels * channel_mult must be a multiple of norm_groups={self.norm_groups}, "
                    f"got {self.channels} * {mult} = {width:g}; change channels, channel_mult or norm_groups"
                )
        groups = self.groups(self.stem_width)
        if groups == 0 or self.stem_width % groups:
            raise ValueError(
                f"stem_channels must be a multiple of the {max(1, groups)} groups of a norm, got {self.stem_channels}"
            )
        # sin_cos divides by half - 1.
        smallest = 4 if self.time_embedding == "sin_cos" else 2
        if self.waves % 2 or self.waves < smallest:
            name = "channels" if self.time_channels is None else "time_channels"
            raise ValueError(
                f"{name} must be even and at least {smallest} for time_embedding={self.time_embedding!r}, "
                f"got {self.waves}"
            )
        if self.image_size % self.size_divisor:
            raise ValueError(
                f"image_size must be divisible by {self.size_divisor} for {len(self.channel_mult)} levels, "
                f"got {self.image_size}; use fewer entries in channel_mult or another image_size"
            )

    def _check_resampling(self) -> None:
        if self.resample_filter not in _FILTERS:
            raise ValueError(f"resample_filter must be (1, 1) or (1, 3, 3, 1), got {self.resample_filter!r}")
        needing = [name for name in ("resample_projection", "input_pyramid") if getattr(self, name)]
        needing += ["resample_filter"] if self.resample_filter != (1, 1) else []
        if needing and not self.resblock_updown:
            raise ValueError(f"{needing[0]} is for residual blocks that resample: set resblock_updown to true")

    def _check_attention(self) -> None:
        for size in self.attention_resolutions:
            if size not in self.level_sizes:
                raise ValueError(
                    f"attention_resolutions must be feature-map sizes of this network, {list(self.level_sizes)} at "
                    f"image_size={self.image_size}, got {size}; leave it out or change image_size or channel_mult"
                )
        for width, size in zip(self.level_channels, self.level_sizes, strict=True):
            if size not in self.attention_resolutions and size != self.level_sizes[-1]:
                continue
            name = "num_heads" if self.head_channels is None else "head_channels"
            if width % getattr(self, name):
                raise ValueError(
                    f"{name} must divide the {width} channels of the attention at size {size}, "
                    f"got {getattr(self, name)}"
                )


_COUNTS = (
    "image_size", "in_channels", "out_channels", "channels", "num_res_blocks", "num_heads", "norm_groups",
    "min_group_channels",
)  # fmt: skip
_OPTIONAL_COUNTS = ("head_channels", "num_classes", "time_channels", "stem_channels", "augment_channels")
_FLAGS = ("scale_shift_norm", "resblock_updown", "conv_resample", "resample_projection", "input_pyramid")
_FILTERS = ((1, 1), (1, 3, 3, 1))
_CHOICES: dict[str, tuple[str, ...]] = {
    "time_embedding": get_args(TimeEmbedding),
    "downsample_padding": get_args(DownsamplePadding),
    # Those of `tensors.QkvLayout`, which needs torch.
    "qkv_layout": ("separate", "new", "legacy", "edm"),
    "decoder_attention": get_args(DecoderAttention),
    "label_place": get_args(LabelPlace),
}
_FIELDS = dataclasses.fields(UNetConfig)
_SONG_FIELDS = _FIELDS[[field.name for field in _FIELDS].index("time_channels") :]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}; {_suggest(str(value), choices)}")


def _as_tuple(name: str, value: object) -> tuple[Any, ...]:
    if not isinstance(value, tuple | list):
        raise ValueError(f"{name} must be a tuple or list of numbers, got {value!r}")
    return tuple(value)


def _suggest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    nearest = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else f"choose from {', '.join(names)}"


def _openai(**fields: Any) -> UNetConfig:
    """Configuration with what all OpenAI networks share: learned range, so six output channels, and conventions."""
    shared: dict[str, Any] = {
        "out_channels": 6,
        "dropout": 0.0,
        "norm_eps": 1e-5,
        "time_embedding": "cos_sin",
        "downsample_padding": "symmetric",
        "scale_shift_norm": True,
        "qkv_layout": "legacy",
    }
    return UNetConfig.from_dict({**shared, **fields})


def _adm(**fields: Any) -> UNetConfig:
    """Configuration with what the ImageNet networks of guided-diffusion share."""
    shared: dict[str, Any] = {
        "channels": 256,
        "num_res_blocks": 2,
        "attention_resolutions": (32, 16, 8),
        "num_classes": 1000,
        "resblock_updown": True,
    }
    return _openai(**{**shared, **fields})


def _song(**fields: Any) -> UNetConfig:
    """Configuration with what DDPM++ and NCSN++ share in EDM's code (`SongUNet`)."""
    shared: dict[str, Any] = {
        "channel_mult": (2, 2, 2),
        "num_res_blocks": 4,
        "dropout": 0.13,
        "resblock_updown": True,
        "qkv_layout": "edm",
        "stem_channels": 128,
        "skip_scale": math.sqrt(0.5),
        "resample_projection": True,
        "decoder_attention": "last",
        "label_place": "before_mlp",
        "augment_channels": 9,
        "min_group_channels": 4,
    }
    return UNetConfig.from_dict({**shared, **fields})


_NCSNPP: dict[str, Any] = {
    "time_embedding": "fourier",
    "time_channels": 256,
    "resample_filter": (1, 3, 3, 1),
    "input_pyramid": True,
}

PRESETS: dict[str, UNetConfig] = {
    "ho-cifar10": UNetConfig(),
    "ho-256": UNetConfig(image_size=256, channel_mult=(1, 1, 2, 2, 4, 4), dropout=0.0),
    "iddpm-cifar10": _openai(num_res_blocks=3, attention_resolutions=(16, 8), num_heads=4, dropout=0.3),
    "iddpm-imagenet64": _openai(
        image_size=64, channel_mult=(1, 2, 3, 4), num_res_blocks=3, attention_resolutions=(16, 8), num_heads=4
    ),
    "adm-imagenet64": _adm(
        image_size=64,
        channels=192,
        channel_mult=(1, 2, 3, 4),
        num_res_blocks=3,
        dropout=0.1,
        head_channels=64,
        qkv_layout="new",
    ),
    "adm-imagenet128": _adm(image_size=128, channel_mult=(1, 1, 2, 3, 4), num_heads=4),
    "adm-imagenet256": _adm(image_size=256, channel_mult=(1, 1, 2, 2, 4, 4), head_channels=64),
    "adm-imagenet512": _adm(image_size=512, channel_mult=(0.5, 1, 1, 2, 2, 4, 4), head_channels=64),
    # Not published: scikit-learn's 8x8 digits, trained in minutes on a CPU.
    "digits": UNetConfig(
        image_size=8,
        in_channels=1,
        out_channels=1,
        channels=32,
        channel_mult=(1, 2),
        attention_resolutions=(4,),
        norm_groups=8,
    ),
    # Not published: for a CPU. A training step of 16 images takes 0.4 s of one core. Any size divisible by 4 will do.
    "small-32": UNetConfig(
        channels=32,
        channel_mult=(1, 2, 4),
        num_res_blocks=1,
        attention_resolutions=(8,),
        dropout=0.0,
        norm_groups=8,
    ),
}

EDM_PRESETS: dict[str, UNetConfig] = {
    "edm-cifar10-ddpmpp": _song(),
    "edm-cifar10-ncsnpp": _song(**_NCSNPP),
    # Of FFHQ and AFHQv2 as well.
    "edm-64-ddpmpp": _song(image_size=64, channel_mult=(1, 2, 2, 2), dropout=0.05),
    "edm-64-ncsnpp": _song(image_size=64, channel_mult=(1, 2, 2, 2), dropout=0.05, **_NCSNPP),
    "edm-imagenet64-adm": _adm(
        image_size=64,
        out_channels=3,
        channels=192,
        channel_mult=(1, 2, 3, 4),
        num_res_blocks=3,
        dropout=0.1,
        head_channels=64,
        qkv_layout="edm",
    ),
}
"""Networks of Karras et al. (2022), whose training is not among `fastdiff.nets.recipes`."""
