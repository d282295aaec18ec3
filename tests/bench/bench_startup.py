"""`make bench-startup`: where a run's time goes beside its steps, phase after phase.

Five steps of 48 images at 107 px, with the stack off (cold) and kept up (warm: the second run on
it, whose ranks' processes wait since the first), a few turns of each; the phases are the run's own
words (orchestration/run/phases.py), what its process still takes after them is `exit`. Beside them,
once a turn, what other verbs take from command to prompt.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from orchestration.cli.tables import print_json
from orchestration.run.phases import PHASES

ROOT = Path(__file__).resolve().parents[2]
RAYCEPTION = str(Path(sys.executable).parent / "rayception")
JOB = "jobs/quickstart.yaml"
SMALL = (
    "model.input_size=107", "data.global_batch_size=48", "schedule.epochs=0.167",
    "schedule.warmup_epochs=0",
)  # fmt: skip
LIMIT_S = 600
POOL_S = 10.0  # until what a run leaves waiting for the next one has imported


class Home:
    """A stack of its own, and commands on it, timed from their start to their end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY"))}
        self.environment = clean | {"RAYCEPTION_HOME": str(folder)}

    def call(self, *arguments: str) -> tuple[float, str]:
        began = time.monotonic()
        done = subprocess.run(
            [RAYCEPTION, *arguments], cwd=ROOT, env=self.environment, capture_output=True,
            text=True, timeout=LIMIT_S,
        )  # fmt: skip
        took_s = time.monotonic() - began
        if done.returncode:
            sys.exit(
                f"{' '.join(arguments[:2])}: got exit code {done.returncode}: {done.stderr}\n"
                f"Its stack may still run, and its logs are in {self.folder}."
            )
        return took_s, done.stdout

    def run(self) -> dict[str, float]:
        """Seconds by phase of a small run, `exit` and `all` among them."""
        took_s, said = self.call("run", JOB, *SMALL, "--json")
        phases: dict[str, float] = json.loads(said)["phases"]
        return {name: phases.get(name, 0.0) for name in PHASES} | {
            "exit": took_s - sum(phases.values()),
            "all": took_s,
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    verbs: dict[str, list[float]] = {}

    def timed(name: str, took_s: float) -> None:
        verbs.setdefault(name, []).append(took_s)

    folder = Path(tempfile.mkdtemp(prefix="bench-startup-"))  # stays where a command fails
    home = Home(folder / "home")
    image = folder / "one.png"
    Image.new("L", (8, 8), 128).save(image)
    home.run()  # packs the data; what is read from disk for the first time is not counted
    for _ in range(given.turns):
        runs["cold"].append(home.run())
        timed("quickstart, stack cold", home.call("run", JOB)[0])
        timed("stack up", home.call("stack", "up")[0])
        said = json.loads(home.call("run", JOB, *SMALL, "--json")[1])
        time.sleep(POOL_S)
        runs["warm"].append(home.run())
        time.sleep(POOL_S)
        url = said["checkpoint_url"].rpartition("/")[0]
        weights = folder / "weights.safetensors"
        home.call("export", url, "--to", str(weights), "--endpoint-url", "local")
        timed("predict", home.call("predict", str(image), "--checkpoint", str(weights))[0])
        home.call("stack", "down")
        for verb in (("plan", JOB), ("validate", JOB), ("--help",)):
            timed(verb[0], home.call(*verb)[0])
    shutil.rmtree(folder)
    told: dict[str, Any] = {
        "phases": {
            kind: {name: statistics.median(one[name] for one in turns) for name in turns[0]}
            for kind, turns in runs.items()
        },
        "verbs": {name: statistics.median(times) for name, times in verbs.items()},
        "turns": given.turns,
        "cores": os.cpu_count(),
    }
    if given.json:
        print_json(told)
        return
    table = Table("phase", "cold s", "warm s")
    for name in told["phases"]["cold"]:
        table.add_row(name, *(f"{told['phases'][kind][name]:.1f}" for kind in ("cold", "warm")))
    console = Console()
    console.print(table)
    others = Table("command", "s")
    for name, took_s in told["verbs"].items():
        others.add_row(name, f"{took_s:.2f}")
    console.print(others)
    console.print(f"medians of {given.turns} turns on {told['cores']} cores")


if __name__ == "__main__":
    main()
