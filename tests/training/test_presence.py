"""Signs of life. Processes that really are lost or hang: test_world.py."""

from __future__ import annotations

import re
import time

import pytest
import torch.distributed as dist

from fastdiff.training import presence
from fastdiff.training.presence import Presence


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(presence, "WATCH_SECONDS", 0.5)


def three() -> list[Presence]:
    store = dist.HashStore()
    found = [Presence(store, rank, 3, None) for rank in range(3)]
    for one in found:
        one.meet()
        one.doing = lambda: "step 4"
    return found


def test_signs_are_given_within_the_block_alone() -> None:
    first = three()[0]
    assert first._read("beat/0") is None
    with first:
        time.sleep(0.2)
        early = first._read("beat/0")
        time.sleep(0.2)
        late = first._read("beat/0")
    assert early is not None
    assert late is not None
    assert early != late
    assert late.endswith(" step 4")
    left = first._read("beat/0")
    time.sleep(0.1)
    assert first._read("beat/0") == left


def test_who_gives_no_sign_is_lost() -> None:
    first, second, third = three()
    with first, third:
        with second:
            time.sleep(0.1)
        said = first.missing()
    assert said.startswith("rank 1 (")
    assert said.endswith(") was lost at step 4")


def test_who_gives_signs_and_has_noticed_nothing_hangs() -> None:
    first, second, third = three()
    with first, second, third:
        third._store.set("noticed/2", "")
        said = first.missing()
    assert said.startswith("rank 1 (")
    assert "lives and was waited for in vain at step 4: it hangs" in said
    assert "rank 2" not in said


def test_who_ended_said_why() -> None:
    first, second, third = three()
    with first, third:
        second.leave("the disk is full")
        assert first.missing().endswith(" ended: the disk is full")
    # A later training of the same processes starts anew.
    again = Presence(first._store.underlying_store, 1, 3, None)
    assert again._read("ended/1") is None


def test_what_one_has_found_the_others_hear() -> None:
    first, second, third = three()
    with first, third:
        first._store.set("said", "rank 1 was lost")
        time.sleep(0.1)
    third._store.delete_key("said")
    assert third.missing() == "rank 1 was lost"
    assert second._read("said") == "rank 1 was lost"


def test_all_may_live() -> None:
    first, second, third = three()
    with first, second, third:
        for one in (second, third):
            one._store.set(f"noticed/{one._rank}", "")
        assert first.missing() == "the connection between the processes was lost, and all of them still live"


@pytest.mark.parametrize(("kept_by", "said"), [(0, r"^rank 0 \(.*\) was lost at step 4$"), (None, "torchrun was lost")])
def test_who_kept_the_store_was_lost_with_it(monkeypatch: pytest.MonkeyPatch, kept_by: int | None, said: str) -> None:
    def gone(*arguments: object) -> None:
        raise dist.DistNetworkError("Broken pipe")

    store = dist.HashStore()
    found = [Presence(store, rank, 2, kept_by) for rank in range(2)]
    found[1].meet()
    found[1].doing = lambda: "step 4"
    monkeypatch.setattr(found[1], "_read", gone)
    assert re.search(said, found[1].missing())
