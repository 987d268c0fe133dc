"""Seconds of one update, world model and policy together, and how much of the machine's matrix peak that is.

python -m benchmarks.update --preset 12m --json        one JSON object, the last line
python -m benchmarks.update --preset carracing         the same as a table
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from worldmodel.config import Config
from worldmodel.envs import Spaces, make
from worldmodel.eval.machine import cpu_model
from worldmodel.presets import preset
from worldmodel.train.clock import Clock
from worldmodel.train.dreamer import Dreamer
from worldmodel.train.schedule import fast_precision, random_batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="carracing")
    parser.add_argument("--batch", type=int, default=16, help="sequences in a batch")
    parser.add_argument("--length", type=int, default=64, help="steps in a sequence")
    parser.add_argument("--own-batch", action="store_true", help="the preset's own batch and length instead")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--updates", type=int, default=5, help="timed updates, after one that is not counted")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    config = preset(args.preset)
    if not args.own_batch:
        replay = dataclasses.replace(config.replay, batch=args.batch, length=args.length)
        config = dataclasses.replace(config, replay=replay)
    precision = fast_precision("cpu") if args.precision == "auto" else args.precision
    result = {"preset": args.preset} | measure(dataclasses.replace(config, precision=precision), args.updates)
    if args.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:28} {value:,.4g}" if isinstance(value, float) else f"{name:28} {value}")


def measure(config: Config, updates: int) -> dict[str, object]:
    """Times `updates` whole updates on noise, counts the multiplications of one, and measures the matrix peak."""
    clock = Clock()
    with contextlib.closing(make(config.env)) as env:
        spaces = Spaces.of(env)
    dreamer = Dreamer(config, spaces, "cpu", clock)
    batch = random_batch(config, spaces, dreamer.agent.world.width, "cpu")
    with FlopCounterMode(display=False) as counter:
        dreamer.update(batch)
    clock.seconds.clear()
    times = [_seconds(lambda: dreamer.update(batch)) for _ in range(updates)]
    seconds = statistics.median(times)
    frames = config.replay.batch * config.replay.length
    imagined = (config.policy.starts or frames) * config.policy.horizon
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    peak = matrix_peak(dtype)
    flops = counter.get_total_flops()
    return {
        "batch": config.replay.batch,
        "length": config.replay.length,
        "precision": config.precision,
        "seconds_per_update": seconds,
        "seconds_min": min(times),
        "seconds_max": max(times),
        "world_share": clock.seconds["world"] / sum(times),
        "dream_share": clock.seconds["dream"] / sum(times),
        "replayed_frames_per_second": frames / seconds,
        "imagined_steps_per_second": imagined / seconds,
        "gflop_per_update": flops / 1e9,
        "gflops_per_second": flops / seconds / 1e9,
        "matrix_peak_gflops": peak,
        "share_of_matrix_peak": flops / seconds / 1e9 / peak,
        "world_parameters": sum(p.numel() for p in dreamer.agent.world.parameters()),
        "threads": torch.get_num_threads(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def matrix_peak(dtype: torch.dtype, size: int = 2048) -> float:
    """The best of ten square matrix products, in 10^9 floating-point operations a second."""
    a = torch.randn(size, size).to(dtype)
    return 2 * size**3 / min(_seconds(lambda: a @ a) for _ in range(10)) / 1e9


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
