"""Whether processes may train together."""

from __future__ import annotations

import pytest
import torch

from fastdiff.training import together
from fastdiff.training.together import check_share, in_common
from fastdiff.training.world import World
from support.training_runs import CONFIG, SIMPLE, images, network


@pytest.mark.parametrize(
    ("batch", "size", "near"),
    [
        (5, 2, "4 and 6 are the nearest that can"),
        (128, 3, "126 and 129 are the nearest that can"),
        (3, 8, "8 is the nearest that can"),
    ],
)
def test_a_batch_that_cannot_be_shared_out_is_refused(batch: int, size: int, near: str) -> None:
    config = CONFIG.__class__(steps=1, batch_size=batch)
    check_share(config, World())
    with pytest.raises(ValueError, match=f"batch_size {batch} cannot be shared out among {size} processes: {near}"):
        check_share(config, World(1, size))


def test_in_common_holds_all_that_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    data = images()
    described = {
        "training": CONFIG.to_dict(),
        "unet": network().config.to_dict(),
        "diffusion": SIMPLE.to_dict(),
        "data": data.describe(with_labels=False),
    }
    found = in_common(described, torch.device("cpu"))
    assert found["training.batch_size"] == "5"
    assert found["training.betas"] == "[0.9, 0.999]"
    assert found["unet.dropout"] == "0.2"
    assert found["data.sha256"]
    assert "data.source" not in found
    assert {"fastdiff's version", "fastdiff's code", "PyTorch", "the kind of device"} <= set(found)
    assert all(len(value) <= 80 for value in found.values())
    on_gpu = in_common(described, torch.device("cuda"))
    assert [key for key in found if key not in on_gpu] == [
        "the instruction set (FASTDIFF_CPU_ISA, ATEN_CPU_CAPABILITY)"
    ]
    long = in_common({"a": {"b": list(range(100))}}, torch.device("cpu"))["a.b"]
    assert len(long) == 16
    assert long != in_common({"a": {"b": list(range(101))}}, torch.device("cpu"))["a.b"]
    assert together._code() == found["fastdiff's code"]
