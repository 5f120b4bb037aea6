"""Drop-in schedulers' steps against diffusers on a machine that is not quiet: `python bench/scheduler_steps.py DDIM`.

A step is timed alone, the two taking turns run by run, and its least time of all rounds is kept: a window of some 50 us
is often undisturbed where a whole run of 20 steps never is. Columns: us of a `set_timesteps` and of an average step,
and diffusers' time over ours for a run.
"""

import argparse
import time

import torch
from bench_schedulers import CONSTRUCTOR, KINDS, SET_TIMESTEPS, SHAPES, STEPS, diffusers, drop_in


@torch.inference_mode()
def least_times(kind: str, shape: tuple[int, ...], rounds: int) -> dict[str, list[float]]:
    """Seconds of set_timesteps and of each step, for "fastdiff" and "diffusers"."""
    schedulers = {name: getattr(module, kind)(**CONSTRUCTOR.get(kind, {}))
                  for name, module in (("fastdiff", drop_in), ("diffusers", diffusers))}  # fmt: skip
    x, m = torch.randn(shape), torch.randn(shape)
    known = (torch.randn(shape), torch.ones(shape)) if kind == "RePaintScheduler" else ()
    least: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, scheduler in schedulers.items():
            start = time.perf_counter()
            scheduler.set_timesteps(STEPS, **SET_TIMESTEPS.get(kind, {}))
            seconds = [time.perf_counter() - start]
            scheduler.is_scale_input_called = True
            state = x
            for t in scheduler.timesteps:
                start = time.perf_counter()
                state = scheduler.step(m, t, state, *known).prev_sample
                seconds.append(time.perf_counter() - start)
            least[name] = [min(pair) for pair in zip(seconds, least.get(name, seconds), strict=True)]
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "kinds", nargs="*", help="beginnings of names, else all but LMS, whose peer takes half a second"
    )
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    wanted = [kind for kind in KINDS if any(kind.startswith(given) for given in options.kinds)]
    print("| scheduler | shape | set, us | step, us | diffusers' set | step | ratio |\n|---|---|---|---|---|---|---|")
    for kind in wanted or [kind for kind in KINDS if not kind.startswith("LMS")]:
        for name, shape in SHAPES.items():
            least = least_times(kind, shape, options.rounds)
            ours, theirs = least["fastdiff"], least["diffusers"]
            cells = [f"{1e6 * value:.1f}" for run in (ours, theirs) for value in (run[0], sum(run[1:]) / len(run[1:]))]
            print(f"| {kind} | {name} | {' | '.join(cells)} | {sum(theirs) / sum(ours):.2f}x |", flush=True)


if __name__ == "__main__":
    main()
