"""What classifier-free guidance does to the digits: how many samples show the digit that was asked for.

`python bench/guidance.py` trains the digits' network with label dropout, two minutes on two cores, samples each digit
at several scales of guidance, and asks a classifier that was trained on real digits. It writes results/guidance.json
and .md; `--quick` only shows that it runs.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from harness import machine

import fastdiff as fd
from fastdiff.cli.demo.digits import digits_diffusion, digits_training, digits_unet
from fastdiff.evaluation.metrics import DigitClassifier

SCALES = (0.0, 1.0, 2.0, 3.0, 5.0)
SAMPLING_STEPS = 25
RESULTS = Path(__file__).parent / "results" / "guidance"


def trained(folder: Path, steps: int, dropout: float) -> fd.Pipeline:
    """The digits' network with ten classes and a null class, after so many steps."""
    torch.manual_seed(0)
    unet = fd.UNet(fd.UNetConfig.from_dict({**digits_unet().to_dict(), "num_classes": 11}))
    settings = {**digits_training(steps).to_dict(), "label_dropout": dropout, "trackers": []}
    config = fd.TrainConfig.from_dict(settings)
    fd.Trainer(unet, digits_diffusion(), fd.data.digits("train"), config, folder).run(progress=True)
    return fd.Pipeline.from_pretrained(folder)


def shares(pipe: fd.Pipeline, scale: float, num: int, classifier: DigitClassifier) -> dict[str, Any]:
    """The share of `num` samples of each digit that the classifier takes for it, and its mean probability of it."""
    labels = torch.arange(10).repeat_interleave(num)
    samples = pipe.sample(len(labels), labels=labels, guidance=scale, steps=SAMPLING_STEPS, batch_size=100)
    shown = pipe.scaling.to_model(pipe.scaling.to_values(samples))
    probabilities = classifier.probabilities(shown.numpy())
    right = probabilities.argmax(axis=1) == labels.numpy()
    share = float(right.mean())
    return {
        "scale": scale,
        "share": share,
        "standard_error": math.sqrt(share * (1 - share) / len(labels)),
        "probability": float(probabilities[range(len(labels)), labels].mean()),
        "by_digit": [float(part.mean()) for part in right.reshape(10, num)],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600, help="of the training")
    parser.add_argument("--num", type=int, default=100, help="samples of each digit")
    parser.add_argument("--label-dropout", type=float, default=0.15)
    parser.add_argument("--quick", action="store_true", help="small, and nothing is written")
    options = parser.parse_args()
    steps, num = (20, 4) if options.quick else (options.steps, options.num)
    train, test = fd.data.digits("train"), fd.data.digits("test")
    classifier = DigitClassifier(train.to_model(train.images).numpy(), train.labels.numpy())
    answers = classifier.probabilities(test.to_model(test.images).numpy()).argmax(axis=1)
    with tempfile.TemporaryDirectory() as folder:
        pipe = trained(Path(folder), steps, options.label_dropout)
        rows = [shares(pipe, scale, num, classifier) for scale in SCALES]
    result = {
        "steps": steps,
        "label_dropout": options.label_dropout,
        "samples_of_each_digit": num,
        "sampling_steps": SAMPLING_STEPS,
        "accuracy_on_real_digits": float((answers == test.labels.numpy()).mean()),
        "scales": rows,
        "machine": machine(),
    }
    text = to_markdown(result)
    print(text)
    if not options.quick:
        RESULTS.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
        RESULTS.with_suffix(".md").write_text(text + "\n")
    return 0


def to_markdown(result: dict[str, Any]) -> str:
    lines = [
        "# Guidance on the digits",
        "",
        f"The demonstration's network with classes, {result['steps']} steps of training with label dropout "
        f"{result['label_dropout']:g}; {result['samples_of_each_digit']} samples of each digit, DDIM, "
        f"{result['sampling_steps']} steps. The classifier is trained on the digits' train split, and right on "
        f"{result['accuracy_on_real_digits']:.1%} of the test split. `python bench/guidance.py` made this.",
        "",
        "| guidance | samples taken for the digit asked for | mean probability of it | least and most of a digit |",
        "|---|---|---|---|",
    ]
    for row in result["scales"]:
        digits = row["by_digit"]
        lines.append(
            f"| {row['scale']:g} | {row['share']:.1%} ± {row['standard_error']:.1%} | {row['probability']:.3f} | "
            f"{min(digits):.0%} to {max(digits):.0%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
