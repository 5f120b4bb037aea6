"""Shared fixtures. Tests hold values, not times: one thread each where several processes share the machine."""

import functools
import os
import signal

import hypothesis
import pytest
import torch
import typer.testing

# A shell's background job ignores Ctrl-C, which some tests send to themselves.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Typer builds all commands anew for each one that is run, which takes longer than most tests of the command line.
typer.testing._get_command = functools.cache(typer.main.get_command)

# The same examples at every run, so that a red run is about the change. `--hypothesis-profile=explore` looks further.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", max_examples=2000, deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="session")
def _few_threads():
    torch.set_num_threads(1 if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1 else 2)
