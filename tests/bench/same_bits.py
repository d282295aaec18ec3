"""`make same-bits`: one job on one rank; on two, of which one is killed; on two until a stop, then
on three: each time to the same bits.

The quickstart's network, with eight micro-batches a step, on stacks of its own. What is compared
are the metrics of every step in MLflow, and the digests of the last checkpoints: weights,
optimizer, average and statistics. Exit code 1 if anything differs.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from orchestration.cli.tables import print_json
from orchestration.run.progress import parse_progress

ROOT = Path(__file__).resolve().parents[2]
RAYCEPTION = str(Path(sys.executable).parent / "rayception")
JOB = (
    "jobs/quickstart.yaml", "data.global_batch_size=128", "schedule.epochs=2",
    "checkpoint.every_steps=10",
)  # fmt: skip
STEPS, DISTURB_AT = 23, 12
LIMIT_S = 600

progress = Console(stderr=True, highlight=False)


class Home:
    """A home of its own in a temporary folder, in which each run starts its services."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="same-bits-"))  # stays where a command fails
        clean = {
            k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "MLFLOW_", "RAY"))
        }
        self.environment = clean | {"RAYCEPTION_HOME": str(self.folder)}

    def call(self, *arguments: str) -> str:
        """-> its standard output."""
        done = subprocess.run(
            [RAYCEPTION, *arguments], cwd=ROOT, env=self.environment, capture_output=True,
            text=True, timeout=LIMIT_S,
        )  # fmt: skip
        if done.returncode:
            self._give_up(arguments, done.returncode, done.stderr)
        return done.stdout

    def train(
        self, *arguments: str, disturb: "Callable[[subprocess.Popen[str]], None] | None" = None
    ) -> tuple[str, dict[str, Any]]:
        """Runs `rayception ARGUMENTS`; `disturb` gets its process once, after DISTURB_AT steps.
        -> the run's name and, unless it was stopped, its outcome."""
        name, lines = "", []
        process = subprocess.Popen(
            [RAYCEPTION, *arguments, "--json"], cwd=ROOT, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stderr is not None
        limit = threading.Timer(LIMIT_S, process.kill)
        limit.start()
        for line in process.stderr:
            lines.append(line)
            progress.print(f"  {line.strip()}", markup=False, soft_wrap=True)
            if started := re.search(r"run (\S+) in MLflow", line):
                name = started[1]
            report = parse_progress(line)
            if disturb is not None and report is not None and report["step"] >= DISTURB_AT:
                disturb(process)
                disturb = None
        output = process.communicate()[0]
        limit.cancel()
        if process.returncode == 0 and disturb is None:
            return name, json.loads(output)
        if process.returncode == 128 + signal.SIGINT:
            return name, {}
        self._give_up(arguments, process.returncode, "".join(lines))
        raise AssertionError

    def kill_rank(self, _: object) -> None:
        """Raises RuntimeError if there is none."""
        for process in psutil.process_iter():
            try:
                is_ours = process.environ().get("RAYCEPTION_HOME") == str(self.folder)
                if is_ours and "RayTrainWorker" in process.name():
                    progress.print(f"  killing rank process {process.pid}")
                    process.kill()
                    return
            except psutil.Error:
                continue
        raise RuntimeError("got no process of a rank to kill")

    def _give_up(self, arguments: tuple[str, ...], code: int, errors: str) -> None:
        sys.exit(
            f"{' '.join(arguments[:2])}: got exit code {code}: {errors}\n"
            f"Its stack may still run, and its logs are in {self.folder}."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    home = Home()
    rows: list[tuple[str, str, float, str]] = []

    def add(what: str, began: float, name: str, outcome: dict[str, Any]) -> None:
        rows.append((what, name, time.monotonic() - began, outcome["digest"]))

    began = time.monotonic()
    progress.print("on one rank")
    add("1 rank", began, *home.train("run", *JOB, "cluster.accelerators=CPU:1"))
    began = time.monotonic()
    progress.print("on two ranks, of which one is killed")
    name, outcome = home.train("run", *JOB, disturb=home.kill_rank)
    assert outcome["attempts"] == 2, outcome
    add("2 ranks, one killed", began, name, outcome)
    began = time.monotonic()
    progress.print("on two ranks until it is stopped, then on three")
    name, _ = home.train("run", *JOB, disturb=lambda process: process.send_signal(signal.SIGINT))
    resumed = ("resume", f"s3://runs/{name}", "cluster.accelerators=CPU:3")
    _, outcome = home.train(*resumed, "--endpoint-url", "local")
    add("2 ranks, stopped, 3 ranks", began, name, outcome)
    bits = json.loads(home.call("compare", *(row[1] for row in rows), "--json"))["bits"]
    shutil.rmtree(home.folder)
    is_equal = bits["steps"] == STEPS and bits["step"] is None and bits["digests_equal"] is True
    if options.json:
        runs = [dict(zip(("what", "run", "seconds", "digest"), row, strict=True)) for row in rows]
        print_json({"runs": runs, "bits": bits})
    else:
        table = Table("run", "s", "digest of weights, optimizer, average and statistics")
        for what, _, took_s, digest in rows:
            table.add_row(what, f"{took_s:.0f}", digest)
        console = Console()
        console.print(table)
        console.print(bits["message"])
    sys.exit(0 if is_equal else 1)


if __name__ == "__main__":
    main()
