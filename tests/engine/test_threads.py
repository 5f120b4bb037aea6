"""Processors that this process may use, and the word about threads that would wait for each other."""

import logging

import pytest
import torch

from fastdiff.engine import threads


def _groups(tmp_path, membership, files):
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "self").write_text(membership)
    return tmp_path / "cgroup", tmp_path / "self"


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"cpu.max": "max 1\n", "a/cpu.max": "9000 9000\n", "a/b/cpu.max": "30000 10000\n"}, 1.0),
        ("0::/of/the/host\n", {"cpu.max": "50000 100000\n"}, 0.5),
        (
            "4:memory:/x\n3:cpu,cpuacct:/x\n",
            {"cpu/x/cpu.cfs_quota_us": "200000\n", "cpu/x/cpu.cfs_period_us": "100000\n"},
            2.0,
        ),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("0::/\n", {"cpu.max": "junk\n"}, None),
        ("junk\n", {}, None),
    ],
    ids=["version 2", "no limit", "the tightest above", "a path of the host", "version 1", "version 1, none", "junk",
         "no groups"],
)  # fmt: skip
def test_quota_is_what_the_control_groups_grant(tmp_path, membership, files, quota):
    assert threads.cpu_quota(*_groups(tmp_path, membership, files)) == quota


def test_quota_without_control_groups_is_none(tmp_path):
    assert threads.cpu_quota(tmp_path / "none", tmp_path / "neither") is None


@pytest.fixture
def fresh(monkeypatch):
    """The check as in a new process, on a quiet machine of two processors with two threads."""
    threads.check_threads.cache_clear()
    monkeypatch.setattr(threads, "available_cpus", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(threads.os, "getloadavg", lambda: (0.5, 0.0, 0.0))
    yield monkeypatch
    threads.check_threads.cache_clear()


def test_check_says_nothing_on_a_quiet_machine(fresh, caplog):
    threads.check_threads()
    assert not caplog.records


@pytest.mark.parametrize(("number", "load", "said"), [(8, 0.0, "8 threads on 2 processors"), (2, 9.0, "a load of 9.0")])
def test_check_names_what_is_wrong_once(fresh, caplog, number, load, said):
    fresh.setattr(torch, "get_num_threads", lambda: number)
    fresh.setattr(threads.os, "getloadavg", lambda: (load, 0.0, 0.0))
    with caplog.at_level(logging.WARNING, logger="fastdiff"):
        threads.check_threads()
        threads.check_threads()
    assert len(caplog.records) == 1
    assert said in caplog.text
    assert "OMP_NUM_THREADS" in caplog.text


def test_one_thread_is_told_nothing_under_load(fresh, caplog):
    fresh.setattr(torch, "get_num_threads", lambda: 1)
    fresh.setattr(threads.os, "getloadavg", lambda: (9.0, 0.0, 0.0))
    threads.check_threads()
    assert not caplog.records


def test_available_cpus_are_at_least_one():
    assert threads.available_cpus() >= 1


@pytest.mark.parametrize(("quota", "expected"), [(None, 8), (1.5, 2), (0.2, 1), (16.0, 8)])
def test_threads_stay_within_the_quota(quota, expected, monkeypatch):
    taken = [8]
    monkeypatch.setattr(threads, "cpu_quota", lambda: quota)
    monkeypatch.setattr(torch, "get_num_threads", lambda: taken[-1])
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    threads.stay_within_quota()
    assert taken[-1] == expected
