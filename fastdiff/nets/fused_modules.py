"""Other people's modules with the fused ops inside: what `fd.accelerate` turns modules into.

A fused class is made of one of the mixins below and the module's own class, so the module keeps its parameters, hooks,
mode and every `isinstance`, and going back is giving it its own class again. Where a call is none that the mixin knows
(a mask, a hook on a part that would be skipped), the module's own class computes it.
"""

from __future__ import annotations

import copyreg
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff import ops
from fastdiff.tensors import QkvLayout

_SILU_NAMES = ("SiLU", "Swish")
_PLAIN_PROCESSORS = ("AttnProcessor", "AttnProcessor2_0")


class Fused(nn.Module):
    """What all fused classes have in common.

    Attributes:
        mixin: The class that computes.
        own: The module's own class.
        what: For the report.
    """

    mixin: ClassVar[type[Fused]]
    own: ClassVar[type[nn.Module]]
    what: ClassVar[str]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """The class is made at run time, so it is pickled and copied as the two that it is made of."""
        reduced = super().__reduce_ex__(max(2, protocol))
        if reduced[0] is not copyreg.__newobj__:  # type: ignore[attr-defined]
            return reduced
        return (_blank, (self.mixin, self.own), *reduced[2:])

    def let_go(self) -> None:
        """Give back what is kept of the module, which is to have its own class again."""


_CLASSES: dict[tuple[type[Fused], type[nn.Module]], type[Fused]] = {}


def fused_class(mixin: type[Fused], own: type[nn.Module]) -> type[Fused]:
    """The class of modules of class `own` that compute as `mixin` says; one and the same at every call."""
    if (mixin, own) not in _CLASSES:
        members = {"mixin": mixin, "own": own, "__module__": mixin.__module__, "__doc__": mixin.__doc__}
        _CLASSES[mixin, own] = type(f"Fused{own.__name__}", (mixin, own), members)
    return _CLASSES[mixin, own]


def own_class(module: nn.Module) -> type[nn.Module]:
    """The class that a module had before it was accelerated."""
    return type(module).own if isinstance(module, Fused) else type(module)


def _blank(mixin: type[Fused], own: type[nn.Module]) -> nn.Module:
    kind = fused_class(mixin, own)
    return kind.__new__(kind)


def is_observed(*modules: nn.Module) -> bool:
    """Whether someone looks at what goes in or out of one of the modules, or has replaced its forward."""
    return any(
        bool(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks)
        or "forward" in m.__dict__
        for m in modules
    )


def is_silu(module: object) -> bool:
    """Whether a module goes by the name of SiLU."""
    return type(module) is nn.SiLU or type(module).__name__ in _SILU_NAMES


def norm_act(
    norm: Any,
    x: Tensor,
    *,
    act: bool = True,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    added_time: Tensor | None = None,
) -> Tensor:
    """The op `group_norm_act` with the parameters of an nn.GroupNorm."""
    return ops.group_norm_act(
        x,
        norm.weight,
        norm.bias,
        norm.num_groups,
        eps=norm.eps,
        act=act,
        scale=scale,
        shift=shift,
        added_time=added_time,
    )


class FusedNorm(Fused):
    """An nn.GroupNorm."""

    what = "group norm"

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [B, C, ...]."""
        return norm_act(self, x, act=False)


class FusedNormSiLU(FusedNorm):
    """An nn.GroupNorm whose result goes into a `PassedSiLU` and nowhere else."""

    what = "group norm + SiLU"

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [B, C, ...] and apply the SiLU."""
        return norm_act(self, x)


class PassedSiLU(Fused):
    """A SiLU that the norm before it has applied."""

    what = "SiLU, part of the norm before it"

    def forward(self, x: Tensor) -> Tensor:
        """x."""
        return x


class FusedSequential(Fused):
    """An nn.Sequential in which each group norm takes the SiLU behind it along.

    Slices of it do so too, and single layers are themselves: a network that calls the norm alone gets the norm alone.
    """

    what = "group norm + SiLU of a Sequential"

    def forward(self, x: Any) -> Any:
        """Apply the layers in turn."""
        layers = list(self._modules.values())
        skipped = False
        for layer, following in zip(layers, [*layers[1:], None], strict=True):
            if skipped:
                skipped = False
            elif isinstance(layer, FusedNorm) and is_silu(following) and not is_observed(layer, following):  # type: ignore[arg-type]
                x = norm_act(layer, x)
                skipped = True
            else:
                x = layer(x)  # type: ignore[misc]
        return x


class FusedDiffusersBlock(Fused):
    """diffusers' ResnetBlock2D: both norms with their SiLU, the second with the time added, or as scale and shift."""

    what = "2 x group norm + time + SiLU"

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """As diffusers' own."""
        m: Any = self
        unknown = args or kwargs.get("scale") is not None or (temb is None) != (m.time_emb_proj is None)
        if unknown or is_observed(m.norm1, m.norm2, m.nonlinearity):
            y: Tensor = self.own.forward(self, input_tensor, temb, *args, **kwargs)
            return y
        h = norm_act(m.norm1, input_tensor)
        resample = m.upsample if m.upsample is not None else m.downsample
        if resample is not None:
            input_tensor, h = resample(input_tensor), resample(h)
        h = m.conv1(h)
        if temb is None:
            h = norm_act(m.norm2, h)
        else:
            time = m.time_emb_proj(temb if m.skip_time_act else m.nonlinearity(temb)).expand(h.shape[0], -1)
            if m.time_embedding_norm == "scale_shift":
                scale, shift = time.chunk(2, dim=1)
                h = norm_act(m.norm2, h, scale=scale, shift=shift)
            else:
                h = norm_act(m.norm2, h, added_time=time)
        h = m.conv2(m.dropout(h))
        if m.conv_shortcut is not None:
            input_tensor = m.conv_shortcut(input_tensor)
        y = (input_tensor + h) / m.output_scale_factor
        return y


class FusedOpenAIBlock(Fused):
    """OpenAI's ResBlock: the second norm with its SiLU and the time added, or as scale and shift.

    The first norm and its SiLU are a Sequential's, see `FusedSequential`.
    """

    what = "group norm + time + SiLU"

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        m: Any = self
        norm, silu, *rest = m.out_layers
        if is_observed(m.out_layers, norm, silu) or emb.ndim != 2:
            own: Any = self.own
            y: Tensor = own._forward(self, x, emb)
            return y
        if getattr(m, "updown", False):
            h = m.in_layers[-1](m.h_upd(m.in_layers[:-1](x)))
            x = m.x_upd(x)
        else:
            h = m.in_layers(x)
        time = m.emb_layers(emb)
        if m.use_scale_shift_norm:
            scale, shift = time.chunk(2, dim=1)
            h = norm_act(norm, h, scale=scale, shift=shift)
        else:
            h = norm_act(norm, h, added_time=time)
        for layer in rest:
            h = layer(h)
        y = m.skip_connection(x) + h
        return y


class FusedLucidrainsBlock(Fused):
    """lucidrains' Block of the versions with group norm: the norm with scale, shift and SiLU."""

    what = "group norm + scale, shift + SiLU"

    def forward(self, x: Tensor, scale_shift: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """As lucidrains' own; scale and shift are [B, C, 1, 1]."""
        m: Any = self
        if is_observed(m.norm, m.act):
            y: Tensor = self.own.forward(self, x, scale_shift=scale_shift)
            return y
        h = m.proj(x)
        scale, shift = (None, None) if scale_shift is None else (v.flatten(1) for v in scale_shift)
        h = norm_act(m.norm, h, scale=scale, shift=shift)
        return m.dropout(h) if hasattr(m, "dropout") else h


class FusedDiffusersAttention(Fused):
    """diffusers' Attention where it is self-attention: one product for q, k and v, and the op `attention`."""

    what = "self-attention, q, k, v in one product"

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **cross_attention_kwargs: Any,
    ) -> Tensor:
        """As diffusers' own."""
        m: Any = self
        x = hidden_states
        projections = (m.to_q, m.to_k, m.to_v)
        is_known = (
            encoder_hidden_states is None
            and attention_mask is None
            and not cross_attention_kwargs.get("scale")
            and type(m.processor).__name__ in _PLAIN_PROCESSORS
            and all(type(layer) is nn.Linear for layer in projections)
            and not is_observed(*projections)
        )
        if not is_known:
            y: Tensor = self.own.forward(
                self, x, encoder_hidden_states, attention_mask=attention_mask, **cross_attention_kwargs
            )
            return y
        h = x
        if x.ndim == 4:
            h = h if m.group_norm is None else m.group_norm(h)
            # In channels_last memory the tokens are a view.
            h = h.permute(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1])
        elif m.group_norm is not None:
            h = m.group_norm(h.transpose(1, 2)).transpose(1, 2)
        weight = torch.cat([layer.weight for layer in projections])
        bias = None if m.to_q.bias is None else torch.cat([layer.bias for layer in projections])
        # PyTorch's own attention, which is in AttnProcessor2_0, scales by d^-1/2 whatever the module says.
        scale = m.scale if type(m.processor).__name__ == "AttnProcessor" else None
        h = ops.attention(F.linear(h, weight, bias), m.heads, scale=scale)
        h = m.to_out[1](m.to_out[0](h))
        if x.ndim == 4:
            h = h.reshape(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)
        # In x's layout, which the first of two decides.
        y = (x + h if m.residual_connection else h) / m.rescale_output_factor
        return y


class FusedQkvLegacy(Fused):
    """OpenAI's QKVAttentionLegacy, and the QKVAttention of improved-diffusion, which sees one head at a time."""

    what = "attention, legacy layout"
    layout: ClassVar[QkvLayout] = "legacy"

    def forward(self, qkv: Tensor) -> Tensor:
        """[B, 3 heads d, S] to [B, heads d, S]."""
        num_heads = int(getattr(self, "n_heads", 1))
        return ops.attention(qkv.transpose(1, 2), num_heads, layout=self.layout).transpose(1, 2)


class FusedQkvNew(FusedQkvLegacy):
    """guided-diffusion's QKVAttention."""

    what = "attention, new layout"
    layout: ClassVar[QkvLayout] = "new"


class FusedAttend(Fused):
    """lucidrains' Attend, whose keys are more than its queries: PyTorch's fused attention."""

    what = "attention, by PyTorch's fused kernels"

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, heads, S, d] each; k and v may have more tokens."""
        m: Any = self
        dropout = float(m.dropout) if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=m.scale)
