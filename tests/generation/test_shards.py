"""Tests of fastdiff.generation.shards."""

import pytest

from fastdiff.generation.shards import Shard

WITHOUT = {"PATH": "/bin"}
CASES = {
    "nothing": ({}, Shard()),
    "torchrun": ({"RANK": "1", "WORLD_SIZE": "3"}, Shard(1, 3)),
    "slurm": ({"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "4"}, Shard(2, 4)),
    "slurm from 1": (
        {
            "SLURM_ARRAY_TASK_ID": "4",
            "SLURM_ARRAY_TASK_COUNT": "4",
            "SLURM_ARRAY_TASK_MIN": "1",
            "SLURM_ARRAY_TASK_MAX": "4",
        },
        Shard(3, 4),
    ),
    "kubernetes": ({"JOB_COMPLETION_INDEX": "0", "JOB_COMPLETIONS": "2"}, Shard(0, 2)),
    # Other programs set RANK as well.
    "rank alone": ({"RANK": "1"}, Shard()),
}
WRONG = {
    "no count": ({"JOB_COMPLETION_INDEX": "0"}, "JOB_COMPLETIONS is not"),
    "no number": ({"RANK": "a", "WORLD_SIZE": "2"}, "RANK='a'"),
    "out of range": ({"RANK": "2", "WORLD_SIZE": "2"}, "as set by torchrun, are no shard"),
    "a step of two": (
        {
            "SLURM_ARRAY_TASK_ID": "2",
            "SLURM_ARRAY_TASK_COUNT": "3",
            "SLURM_ARRAY_TASK_MIN": "0",
            "SLURM_ARRAY_TASK_MAX": "4",
        },
        "a step other than 1",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_environment_names_the_shard(case):
    variables, shard = CASES[case]
    assert Shard.from_environment(WITHOUT | variables) == shard


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_environment_is_named(case):
    variables, said = WRONG[case]
    with pytest.raises(ValueError, match=said):
        Shard.from_environment(WITHOUT | variables)


def test_each_part_has_one_owner():
    shards = [Shard(index, 3) for index in range(3)]
    assert all(sum(shard.owns(part) for shard in shards) == 1 for part in range(100))


def test_a_shard_is_typed_as_it_is_printed():
    assert Shard.parse(" 2 / 5 ") == Shard(2, 5)
    assert Shard.parse(str(Shard(4, 5))) == Shard(4, 5)


@pytest.mark.parametrize("text", ["", "3", "3/3", "-1/2", "0/0", "a/b", "1/2/3", "0.5/2"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(ValueError, match="i/n"):
        Shard.parse(text)
