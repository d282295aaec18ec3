"""`make bench-overhead`: a whole run beside a bare torch DDP loop, turn by turn.

The run is a user's: Ray Train workers, progress, metrics of every step to MLflow, a checkpoint
written every 45 steps. The bare loop (bare_ddp.py) has the same model, batches, loss and
optimizer, and nothing else. Both are timed from step 10 to the last one, the run by the times of
its points in MLflow, so that what a checkpoint costs the steps is in it; start-up and the
evaluation at the end are not. Weights are not averaged in either: that is the recipe's.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestration.cli.tables import print_json

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
JOB = "jobs/quickstart.yaml"
WARMUP = 10
EVERY_STEPS = 45  # a checkpoint about every ten seconds
RANK_BATCH = 16
LIMIT_S = 900


def overrides(folder: Path, size: int, ranks: int) -> list[str]:
    return [
        f"data.train={(folder / 'train').as_uri()}", f"data.val={(folder / 'val').as_uri()}",
        f"checkpoint.storage={(folder / 'runs').as_uri()}", f"checkpoint.every_steps={EVERY_STEPS}",
        f"cluster.accelerators=CPU:{ranks}", f"model.input_size={size}", "model.width=0.5",
        "optim.average_decay=null", "schedule.epochs=1", "schedule.warmup_epochs=0",
        f"data.global_batch_size={RANK_BATCH * ranks}", f"data.micro_batch_size={RANK_BATCH}",
    ]  # fmt: skip


def call(home: Path, *command: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY"))}
    done = subprocess.run(
        command, cwd=ROOT, env=environment | {"RAYCEPTION_HOME": str(home)}, capture_output=True,
        text=True, timeout=LIMIT_S,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(command[:4])}: got exit code {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def whole_run(home: Path, given: list[str], ranks: int) -> float:
    """Images per second of a run's steps after the first ones, by its points in MLflow."""
    from mlflow.tracking import MlflowClient

    outcome: dict[str, Any] = json.loads(
        call(home, str(BIN / "rayception"), "run", JOB, *given, "--json")
    )
    secrets = json.loads((home / "stack.json").read_text())["secrets"]
    os.environ |= {
        "MLFLOW_TRACKING_USERNAME": "anyone",
        "MLFLOW_TRACKING_PASSWORD": secrets["mlflow_token"],
    }
    client = MlflowClient(tracking_uri=outcome["run"]["uri"])
    points = client.get_metric_history(outcome["run"]["run_id"], "train/loss")
    # Steps are sent together: the last of a group was done when the group was sent.
    ends = {point.timestamp: point.step for point in sorted(points, key=lambda one: one.step)}
    timed = [(at, step) for at, step in sorted(ends.items()) if step >= WARMUP]
    (first_ms, first), (last_ms, last) = timed[0], timed[-1]
    return float((last - first) * RANK_BATCH * ranks * 1000 / (last_ms - first_ms))


def bare_loop(home: Path, given: list[str], ranks: int) -> float:
    result = home / "bare.json"
    call(home, sys.executable, "-m", "tests.bench.bare_ddp", JOB, *given, "--result", str(result),
         "--warmup", str(WARMUP))  # fmt: skip
    return float(result.read_text())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=139, help="pixels")
    parser.add_argument("--ranks", type=int, default=1, help="the services take a core too")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    progress = Console(stderr=True, highlight=False)
    rates: dict[str, list[float]] = {"rayception run": [], "bare torch DDP": []}
    with tempfile.TemporaryDirectory(prefix="rayception-bench-") as name:
        home = Path(name)
        given = overrides(home, options.size, options.ranks)
        call(home, str(BIN / "rayception"), "stack", "up")
        try:
            whole_run(
                home, [*given, "schedule.epochs=0.3"], options.ranks
            )  # packs the data, warms the caches
            for number in range(1, options.rounds + 1):
                for kind, measure in (
                    ("rayception run", whole_run),
                    ("bare torch DDP", bare_loop),
                ):
                    rates[kind].append(measure(home, given, options.ranks))
                    progress.print(f"{number}/{options.rounds} {kind}: {rates[kind][-1]:.2f}/s")
        finally:
            call(home, str(BIN / "rayception"), "stack", "down", "--force")
    medians = {kind: statistics.median(found) for kind, found in rates.items()}
    ratio = medians["rayception run"] / medians["bare torch DDP"]
    if options.json:
        print_json({"images_per_second": rates, "ratio": ratio})
        return
    table = Table("loop", "images/s, median", "lowest to highest", "ratio")
    for kind, found in rates.items():
        share = medians[kind] / medians["bare torch DDP"]
        table.add_row(
            kind, f"{medians[kind]:.2f}", f"{min(found):.2f} to {max(found):.2f}", f"{share:.3f}"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
