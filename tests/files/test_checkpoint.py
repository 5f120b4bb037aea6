"""Tests of fastdiff.files.checkpoint."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from fastdiff.files import checkpoint
from fastdiff.files.checkpoint import (
    latest_checkpoint,
    list_checkpoints,
    load_model,
    load_tensors,
    read_config,
    save_model,
)
from support.checkpoints import CONFIG, DIFFUSION, SCALING, leftovers, network, save_step, step_of


def test_model_folder_round_trip(tmp_path: Path) -> None:
    unet = network()
    folder = save_model(tmp_path / "model", unet, DIFFUSION, SCALING, step=7)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    loaded = load_model(folder)
    assert (loaded.unet.config, loaded.diffusion, loaded.scaling) == (CONFIG, DIFFUSION, SCALING)
    assert not loaded.unet.training
    assert loaded.metadata["weights"] == "raw"
    assert loaded.metadata["step"] == 7
    assert loaded.metadata["versions"]["torch"] == torch.__version__
    for (name, a), b in zip(unet.state_dict().items(), loaded.unet.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
        assert a.stride() == b.stride(), name


def test_model_file_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    unet = network()
    first, second = (save_model(tmp_path / name, unet, DIFFUSION, SCALING) for name in ("a", "b"))
    for name in ("config.json", "model.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_loading_leaves_the_random_state_alone(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", network(), DIFFUSION, SCALING)
    before = torch.get_rng_state()
    load_model(folder)
    assert torch.equal(before, torch.get_rng_state())


def test_files_can_be_read_by_those_who_may_read_the_configuration(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", network(), DIFFUSION, SCALING)
    modes = {path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert len(modes) == 1
    assert modes != {0o600} or (tmp_path.stat().st_mode & 0o077) == 0


def test_save_model_overwrites_nothing(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", network(1), DIFFUSION, SCALING)
    with pytest.raises(ValueError, match="exists already and nothing is overwritten"):
        save_model(folder, network(2), DIFFUSION, SCALING)
    assert all(bool((p == 1).all()) for p in load_model(folder).unet.parameters())


def test_checkpoint_holds_average_and_raw_weights(tmp_path: Path) -> None:
    folder = save_step(tmp_path, 3)
    assert folder == tmp_path / "checkpoints" / "step_00000003"
    assert step_of(tmp_path) == 3
    assert load_model(folder).metadata["weights"] == "ema"
    raw = load_model(folder, weights="raw")
    assert raw.metadata["weights"] == "raw"
    assert raw.metadata["training"] == {"batch_size": 4}
    assert raw.metadata["data"] == {"source": "digits"}


def test_run_folder_keeps_the_newest(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    for step in (1, 5, 20, 100):
        save_step(tmp_path, step)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [20, 100]
    assert step_of(tmp_path) == 100
    assert leftovers(tmp_path) == []


def test_complete_checkpoint_of_the_same_step_is_left_alone(tmp_path: Path) -> None:
    folder = save_step(tmp_path, 3)
    before = (folder / "config.json").stat().st_mtime_ns
    assert save_step(tmp_path, 3) == folder
    assert (folder / "config.json").stat().st_mtime_ns == before


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "training.safetensors"])
@pytest.mark.parametrize("damage", [truncate, Path.unlink], ids=["truncated", "missing"])
def test_damaged_checkpoint_is_passed_over_and_replaced(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    save_step(tmp_path, 1)
    damage(save_step(tmp_path, 2) / name)
    with pytest.warns(UserWarning, match=f"passing over an incomplete checkpoint: .*{name}"):
        assert load_model(tmp_path).metadata["step"] == 1
    save_step(tmp_path, 2)
    assert step_of(tmp_path) == 2
    assert leftovers(tmp_path) == []


def test_stale_partial_folders_of_dead_processes_are_removed(tmp_path: Path) -> None:
    save_step(tmp_path, 1)
    process = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    checkpoints = tmp_path / "checkpoints"
    stale = checkpoints / f".step_00000009.{int(process.stdout)}.partial"
    own = checkpoints / f".step_00000002.{os.getpid()}.partial"
    running = checkpoints / f".step_00000009.{os.getppid()}.partial"
    for folder in (stale, own, running):
        folder.mkdir()
    save_step(tmp_path, 2)
    assert leftovers(tmp_path) == [running.name]


@contextmanager
def failing_at(monkeypatch: pytest.MonkeyPatch, count: int) -> Iterator[list[str]]:
    """Let the call number `count` of all that write to the disk say that it is full."""
    calls: list[str] = []

    def failing(name: str, function: Callable[..., Any], error: type[Exception]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) - 1 == count:
                if error is OSError:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                # The wording of safetensors 0.8.0 on a full tmpfs.
                raise error("Error while serializing: I/O error: No space left on device (os error 28)")
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for owner, name in ((os, "mkdir"), (os, "fsync"), (os, "rename"), (Path, "write_text")):
            patch.setattr(owner, name, failing(name, getattr(owner, name), OSError))
        save_file = failing("save_file", safetensors.torch.save_file, checkpoint.SafetensorError)
        patch.setattr(checkpoint, "save_file", save_file)
        yield calls


def test_full_disk_at_any_write_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed: list[str] = []
    for count in range(100):
        run = tmp_path / str(count)
        save_step(run, 1)
        message = ""
        with failing_at(monkeypatch, count) as calls:
            try:
                save_step(run, 2)
            except RuntimeError as error:
                message = str(error)
        step = step_of(run)
        assert leftovers(run) == []
        if len(calls) <= count:
            break
        if not message:
            # A folder that exists already need not be made.
            assert (calls[count], step) == ("mkdir", 2)
            continue
        failed.append(calls[count])
        assert message.startswith(f"could not save checkpoint to {run}/checkpoints/step_00000002: No space")
        # Only the last sync comes after the new name is in place.
        assert f"the previous checkpoint {run}/checkpoints/step_{step:08d} is intact" in message
    # Three files and their folder are on the disk before the name is theirs, and then the name.
    assert failed == ["mkdir", "save_file", "save_file", "write_text", *["fsync"] * 4, "rename", "fsync"]


def test_full_disk_at_the_first_checkpoint_says_that_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with failing_at(monkeypatch, 3), pytest.raises(RuntimeError, match="there is no earlier checkpoint"):
        save_step(tmp_path, 1)
    with (
        failing_at(monkeypatch, 2),
        pytest.raises(RuntimeError, match=r"could not save the model to .*: No space left"),
    ):
        save_model(tmp_path / "model", network(1), DIFFUSION, SCALING)


def test_write_that_the_system_cuts_short_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    """A real failure in the middle of a file, from the limit on file sizes; a full disk needs a disk of one's own."""
    save_step(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, hard))
    try:
        with pytest.raises(RuntimeError, match=r"could not save checkpoint .*: File too large; .* is intact"):
            save_step(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert step_of(tmp_path) == 1
    assert leftovers(tmp_path) == []


def test_interrupted_save_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_step(tmp_path, 1)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save_step(tmp_path, 2)
    assert step_of(tmp_path) == 1
    assert leftovers(tmp_path) == []


KILLS = """
    import os, shutil, signal, sys
    from pathlib import Path
    import torch
    # Threads would not survive the fork.
    torch.set_num_threads(1)
    from support.checkpoints import leftovers, save_step, step_of

    def die_at(count):
        remaining = count
        def event(name, args):
            nonlocal remaining
            if name in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "open", "os.chmod", "shutil.rmtree", "fsync"):
                remaining -= 1
                if remaining < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        fsync = os.fsync
        def audited(descriptor):
            sys.audit("fsync")
            fsync(descriptor)
        os.fsync = audited
        sys.addaudithook(event)

    root = Path(sys.argv[1])
    save_step(root / "first", 1)
    steps = []
    for count in range(1000):
        run = root / str(count)
        shutil.copytree(root / "first", run)
        pid = os.fork()
        if pid == 0:
            die_at(count)
            save_step(run, 2, keep=1)
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        steps.append(step_of(run))
        if os.WIFEXITED(status):
            break
        save_step(run, 2, keep=1)
        assert step_of(run) == 2
        save_step(run, 3, keep=1)
        assert leftovers(run) == [], leftovers(run)
        shutil.rmtree(run)
    assert os.WEXITSTATUS(status) == 0
    assert steps == sorted(steps) and steps[0] == 1 and steps[-1] == 2, steps
    print(len(steps))
"""


def test_kill_at_any_point_leaves_a_checkpoint(tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tests.parent}:{tests}"}
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLS), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) > 20


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "other version": ({"format_version": 2}, "has format version 2, and this fastdiff reads version 1"),
    "unknown key": ({"sheduler": 1}, "unknown key 'sheduler' in the configuration of a model"),
    "foreign": ({"format": "diffusers"}, "was not written by fastdiff"),
    "weights": ({"weights": "both"}, "weights must be 'ema' or 'raw', got 'both'"),
    "step": ({"step": -1}, "step must be an int"),
    "unet key": ({"unet": {"chanels": 3}}, r"config.json: unknown UNetConfig field 'chanels'; did you mean 'channels'"),
    "diffusion key": ({"diffusion": {"shedule": {}}}, r"config.json: unknown key 'shedule' in a diffusion"),
    "scaling": ({"scaling": {"levels": 1}}, "config.json: levels must be a whole number from 2 to 65536"),
    "not a dict": ({"unet": 3}, r"config\.json: "),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_bad_configuration_is_refused(tmp_path: Path, name: str) -> None:
    changes, message = BAD_CONFIGS[name]
    folder = save_model(tmp_path / "model", network(1), DIFFUSION, SCALING)
    edit(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_missing_key_and_broken_json_are_named(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", network(1), DIFFUSION, SCALING)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["scaling"]
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json: missing keys: scaling"):
        read_config(folder)
    path.write_text(json.dumps(config)[:50])
    with pytest.raises(ValueError, match=r"config\.json is not JSON, perhaps cut short"):
        read_config(folder)
    path.write_text("[]")
    with pytest.raises(ValueError, match="was not written by fastdiff"):
        read_config(folder)


def test_missing_and_foreign_paths_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere does not exist"):
        load_model(tmp_path / "nowhere")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    with pytest.raises(ValueError, match=r"is not a fastdiff model folder: config\.json is missing$"):
        load_model(foreign)
    (foreign / "weights.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"it holds weights\.pt, but only safetensors are read here"):
        load_model(foreign)
    with pytest.raises(ValueError, match="only safetensors are read here"):
        load_model(foreign / "weights.pt")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match="has no complete checkpoint yet"):
        load_model(tmp_path / "run")
    folder = save_model(tmp_path / "model", network(1), DIFFUSION, SCALING)
    with pytest.raises(ValueError, match="is a file; give the folder that holds"):
        load_model(folder / "model.safetensors")
    shutil.move(folder / "model.safetensors", tmp_path / "away")
    with pytest.raises(ValueError, match=r"cannot read .*model\.safetensors: No such file"):
        load_model(folder)


def test_truncated_weights_are_named(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", network(1), DIFFUSION, SCALING)
    truncate(folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or damaged"):
        load_model(folder)


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", network(1), DIFFUSION, SCALING)
    edit(folder, unet={**CONFIG.to_dict(), "channels": 16})
    with pytest.raises(
        ValueError, match=r"time_embed\.0\.weight is \[32, 8\] where \[64, 16\] is expected.*; and \d+ more"
    ):
        load_model(folder)
    edit(folder, unet={**CONFIG.to_dict(), "num_res_blocks": 2})
    with pytest.raises(ValueError, match=r"input_blocks\.2\.0\.norm1\.weight is missing"):
        load_model(folder)
    edit(folder, unet={**CONFIG.to_dict(), "num_classes": 3})
    with pytest.raises(ValueError, match=r"label_emb\.weight is missing$"):
        load_model(folder)


def test_tensors_of_another_network_are_not_saved(tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {"other": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"time_embed\.0\.weight is missing; .* and \d+ more"):
        save_model(tmp_path / "model", network(1), DIFFUSION, SCALING, tensors=tensors)
    assert not (tmp_path / "model").exists()


def test_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", network(1), DIFFUSION, SCALING)
    with pytest.raises(ValueError, match="holds 'raw' weights only, got weights='ema'"):
        load_model(folder, weights="ema")
    with pytest.raises(ValueError, match="weights must be 'ema', 'raw' or None"):
        load_model(folder, weights="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weights must be 'ema' or 'raw'"):
        save_model(tmp_path / "other", network(1), DIFFUSION, SCALING, weights="best")  # type: ignore[arg-type]


def test_load_tensors_keeps_type_and_layout(tmp_path: Path) -> None:
    value = torch.rand(2, 3, 4, 4)
    safetensors.torch.save_file({"a.x": value, "b": value.clone()}, tmp_path / "file.safetensors")
    target = torch.empty(2, 3, 4, 4, dtype=torch.float64).to(memory_format=torch.channels_last)
    load_tensors(tmp_path / "file.safetensors", {"x": target}, prefix="a.")
    assert torch.equal(target, value.double())
    assert target.is_contiguous(memory_format=torch.channels_last)
