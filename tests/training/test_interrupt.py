"""Signals that ask a training to end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastdiff.training import interrupt as interrupt_module
from fastdiff.training.interrupt import Interrupt, Interrupted
from fastdiff.training.trainer import TrainProgress
from support.training_runs import digests, trainer

ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def as_in_a_terminal() -> Iterator[None]:
    """The signals as a program finds them; under nohup the tests' own process ignores SIGHUP."""
    wanted = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_signals_save_and_the_run_ends_with_the_same_bytes(tmp_path: Path, number: signal.Signals) -> None:
    whole = trainer(tmp_path / "whole").run()
    handler = signal.getsignal(number)

    def press(entry: TrainProgress) -> None:
        if entry.step == 3:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match=r"stopped at step 4 and was saved to .*step_00000004") as caught:
        trainer(tmp_path / "parts", checkpoint_every=100).run(progress=press)
    assert caught.value.signal_number == number
    assert isinstance(caught.value, KeyboardInterrupt)
    assert signal.getsignal(number) is handler
    rest = trainer(tmp_path / "parts", checkpoint_every=2).run()
    assert rest.resumed_from == 4
    assert digests(rest.checkpoint) == digests(whole.checkpoint)


@pytest.mark.parametrize("theirs", [signal.SIG_IGN, lambda number, frame: None], ids=["ignored", "handled"])
def test_a_signal_that_the_program_sees_to_stays_its_own(theirs) -> None:  # type: ignore[no-untyped-def]
    before = signal.signal(signal.SIGHUP, theirs)
    try:
        with Interrupt() as interrupt:
            assert signal.getsignal(signal.SIGHUP) is theirs
            os.kill(os.getpid(), signal.SIGHUP)
            assert interrupt.requested is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_all_handlers_are_back_after_the_first_signal() -> None:
    before = [signal.getsignal(number) for number in ENDING]
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.requested == signal.SIGTERM
        assert [signal.getsignal(number) for number in ENDING] == before


def test_signals_that_a_launcher_repeats_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with Interrupt(repeated=True) as interrupt:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert interrupt.requested == signal.SIGTERM
        # Later, someone means it.
        monkeypatch.setattr(interrupt_module, "TOGETHER_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is handler
