"""Schemas made from types, as PyTorch's own parser reads them."""

from types import NoneType
from typing import Literal, NamedTuple

import pytest
import torch
from torch import Tensor

from fastdiff.calls import Mutated, SymInt
from fastdiff.ops._schema import schema


class Call(NamedTuple):
    x: Tensor
    bias: Tensor | None
    out: Mutated
    history: Mutated | None
    seed: SymInt
    count: int
    p: float
    clip: float | None
    act: bool
    layout: Literal["a", "b"]
    dtype: torch.dtype


def test_every_type_has_its_word():
    assert schema(Call, NoneType) == (
        "(Tensor x, Tensor? bias, Tensor(a!) out, Tensor(b!)? history, SymInt seed, int count, float p, float? clip, "
        "bool act, str layout, ScalarType dtype) -> ()"
    )


@pytest.mark.parametrize(
    ("results", "said"),
    [(Tensor, "Tensor"), (NoneType, "()"), (tuple[Tensor, Tensor], "(Tensor, Tensor)")],
    ids=str,
)
def test_pytorch_reads_it_back(results, said):
    text = f"fastdiff::nothing{schema(Call, results)}"
    assert text.endswith(f"-> {said}")
    parsed = torch._C.parse_schema(text)
    assert [argument.name for argument in parsed.arguments] == list(Call._fields)
    written = [a.name for a in parsed.arguments if a.alias_info is not None and a.alias_info.is_write]
    assert written == ["out", "history"]
    assert len(parsed.returns) == {"Tensor": 1, "()": 0, "(Tensor, Tensor)": 2}[said]


def test_an_unknown_type_has_no_schema():
    class Strange(NamedTuple):
        x: Tensor
        names: list

    with pytest.raises(KeyError):
        schema(Strange, Tensor)
