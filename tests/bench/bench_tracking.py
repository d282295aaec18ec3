"""`make bench-tracking`: what metrics of every step cost a step, turn by turn in one process.

The same optimizer step of a narrow inception_v3, with a MetricWriter that sends to a real MLflow
server what a run sends (ten values a step, all steps of a second together) and without. One compute
thread: the server and the writer's thread have the other core.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from rich.console import Console
from rich.table import Table

from datasets.storage.store import Store
from inception.network import build_network
from inception.optim import build_optimizer
from inception.precision import to_device_format
from inception.reduction import StepReduction
from inception.step import train_step
from inception.tree_sum import TreeSum
from orchestration.cli.tables import print_json
from orchestration.job.load import load_job
from orchestration.tracking.outbox import Outbox
from orchestration.tracking.runs import close_run, open_run
from orchestration.tracking.writer import MetricWriter
from tests.bench.bench_overhead import BIN, JOB, call

STEPS = 40  # of a turn
BATCH = 16
KEYS = [f"train/value-{number}" for number in range(10)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    job = load_job(JOB, ["model.input_size=139", "model.width=0.5"])
    network = build_network(job.model.architecture(), seed=0)
    to_device_format(network, torch.device("cpu"))
    optimizer = build_optimizer(
        network, name="rmsprop_tf", lr=1e-4, weight_decay=4e-5, momentum=0.9, decay=0.9, eps=1.0
    )
    reduction = StepReduction(network, TreeSum.of(1, 1), 0)
    images = torch.randint(0, 256, (BATCH, 3, 139, 139), dtype=torch.uint8)
    batch = SimpleNamespace(
        index=0, images=images.contiguous(memory_format=torch.channels_last),
        targets=torch.randint(0, 10, (BATCH,)), weights=torch.ones(BATCH),
    )  # fmt: skip
    took: dict[str, list[float]] = {"without": [], "with metrics": []}
    log_s: list[float] = []
    with tempfile.TemporaryDirectory(prefix="rayception-bench-") as name:
        home = Path(name)
        call(home, str(BIN / "rayception"), "stack", "up")
        try:
            port = json.loads((home / "stack.json").read_text())["ports"]["mlflow"]
            uri = f"http://127.0.0.1:{port}"
            os.environ["RAYCEPTION_HOME"] = str(home)  # whose MLflow has a token
            run = open_run(uri, experiment="bench", name="bench", params={}, tags={})
            writer = MetricWriter(run, Outbox(Store(), home.as_uri()), "rank-0")
            step = 0
            for _ in range(options.turns + 1):
                for kind, seconds in took.items():
                    for _ in range(STEPS):
                        step += 1
                        began = time.perf_counter()
                        train_step(
                            network, optimizer, [batch], reduction, seed=0, step=step, clip_norm=2.0
                        )
                        if kind == "with metrics":
                            at = time.perf_counter()
                            writer.log(step, dict.fromkeys(KEYS, 1.0))
                            log_s.append(time.perf_counter() - at)
                        seconds.append(time.perf_counter() - began)
            writer.close()
            close_run(run, "FINISHED")
        finally:
            call(home, str(BIN / "rayception"), "stack", "down", "--force")
    medians = {kind: statistics.median(seconds[STEPS:]) for kind, seconds in took.items()}
    means = {kind: statistics.fmean(seconds[STEPS:]) for kind, seconds in took.items()}
    cost = statistics.fmean(log_s[STEPS:]) / means["without"]
    if options.json:
        print_json({"median_s": medians, "mean_s": means, "log_call_fraction": cost})
        return
    table = Table("a step", "median ms", "mean ms", "ratio of medians")
    for kind, seconds_ in medians.items():
        table.add_row(
            kind, f"{1000 * seconds_:.2f}", f"{1000 * means[kind]:.2f}",
            f"{seconds_ / medians['without']:.4f}",
        )  # fmt: skip
    Console().print(table)
    Console().print(f"the call itself: {100 * cost:.3f} % of a step")


if __name__ == "__main__":
    main()
