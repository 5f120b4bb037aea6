"""A process that holds one engine, for bench/cpu_unet.py: it reads commands, a line of JSON each, and answers likewise.

    python bench/cpu_worker.py ENGINE PRESET THREADS

{"prepare": B, "expected": FILE}: build it for batches of B; answers the seconds that took, and the error relative to
the largest of the expected outputs. {"run": N}: N evaluations; answers the seconds of each.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from typing import Any

import numpy as np
import torch
from cpu_peers import Call, build, inputs


def main() -> None:
    """Serve until the input ends."""
    engine, preset, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    # What libraries print goes to the terminal, answers alone to whoever asked.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(threads)
    call: Call | None = None
    x: Any = None
    for line in sys.stdin:
        command = json.loads(line)
        if "prepare" in command:
            call = None
            try:
                start = time.perf_counter()
                x = inputs(preset, command["prepare"])[0].numpy()
                call = build(engine, preset, command["prepare"], threads)
                output = call(x)
                answer: dict[str, Any] = {"seconds": time.perf_counter() - start}
                expected = np.load(command["expected"])
                answer["error"] = float(np.abs(output - expected).max() / np.abs(expected).max())
            except Exception as error:
                answer = {"failed": f"{type(error).__name__}: {error}"[:300]}
        else:
            assert call is not None
            answer = {"seconds": [_timed(call, x) for _ in range(command["run"])]}
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(answer), file=answers, flush=True)


def _timed(call: Call, x: Any) -> float:
    start = time.perf_counter()
    call(x)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
