"""Memory of a training step of the Ho CIFAR-10 network on the CPU, by micro-batch and activation checkpointing.

    python bench/train_memory.py [--batch 16] [--steps 2] [--micro-batch 16 4 1]

Writes bench/results/train_memory.json and .md. Each row is a run of the Trainer in a process of its own: the most
memory that was resident at once (ru_maxrss), with Python and PyTorch in it, before the first step, after the steps, and
after the checkpoint at the end.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import machine

RESULTS = Path(__file__).parent / "results" / "train_memory"
KIB_PER_MIB = 1024


def measured(batch: int, steps: int, micro_batch: int, checkpointing: bool) -> dict[str, Any]:
    """Peaks in MiB, and processor seconds of the fastest step, of a run in this process."""
    import torch

    import fastdiff as fd
    from fastdiff.files.data import DataScaling, ImageData

    torch.manual_seed(0)
    unet = fd.UNet(fd.UNetConfig.preset("ho-cifar10"))
    images = torch.randint(0, 256, (512, 3, 32, 32), dtype=torch.uint8)
    config = fd.TrainConfig(
        steps=steps, warmup_steps=0, batch_size=batch, micro_batch=micro_batch, activation_checkpointing=checkpointing
    )
    process = fd.Diffusion(fd.NoiseSchedule.linear(1000), variance="fixed_large")
    with tempfile.TemporaryDirectory() as folder:
        trainer = fd.Trainer(unet, process, ImageData(images, None, DataScaling(256), "random"), config, folder)
        peaks, times = [_peak_mib()], [time.process_time()]

        def note(step: int) -> None:
            peaks.append(_peak_mib())
            times.append(time.process_time())

        trainer.run(on_step=note)
    seconds = min(after - before for before, after in itertools.pairwise(times))
    return {"before_mib": peaks[0], "steps_mib": peaks[-1], "saved_mib": _peak_mib(), "seconds": seconds}


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB_PER_MIB


def _in_a_process(options: argparse.Namespace, micro_batch: int, checkpointing: bool) -> dict[str, Any]:
    command = [sys.executable, __file__, "--batch", str(options.batch), "--steps", str(options.steps)]
    command += ["--one", json.dumps([micro_batch, checkpointing])]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return {"micro_batch": micro_batch, "activation_checkpointing": checkpointing} | found


def main() -> None:
    """Measure each setting, and write what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--micro-batch", type=int, nargs="+", default=[16, 4, 1])
    parser.add_argument("--out", type=Path, default=RESULTS, help="results, without suffix")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        micro_batch, checkpointing = json.loads(options.one)
        print(json.dumps(measured(options.batch, options.steps, micro_batch, checkpointing)))
        return
    rows = []
    for micro_batch in options.micro_batch:
        for checkpointing in (False, True):
            rows.append(_in_a_process(options, micro_batch, checkpointing))
            print(rows[-1], flush=True)
    about = machine()
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    text = (
        f"{about['processor']}, {about['threads']} threads, {about['isa']}, commit {about['commit']}; {versions}.\n\n"
    )
    text += f"Training of the Ho CIFAR-10 network at batch {options.batch}, most memory of the process, MiB:\n\n"
    text += "| micro-batch | activation checkpointing | before | steps | with a checkpoint written |\n"
    text += "|---|---|---|---|---|\n"
    for row in rows:
        cells = [row["micro_batch"], "yes" if row["activation_checkpointing"] else "no"]
        cells += [f"{row[name]:.0f}" for name in ("before_mib", "steps_mib", "saved_mib")]
        text += f"| {' | '.join(map(str, cells))} |\n"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
