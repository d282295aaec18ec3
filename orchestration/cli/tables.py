"""The tables a person reads: a job's plan, a run's outcome (rich; colour only on a terminal)."""

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from orchestration.job.cluster import LOCAL
from orchestration.job.job import Job

if TYPE_CHECKING:
    from orchestration.driver.driver import Outcome
    from orchestration.job.plan import Plan


def print_plan(console: Console, job: Job, plan: "Plan") -> None:
    """Every derived number, in the order in which a person asks."""
    table = Table(title=f"plan of {job.name}", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for key, value in plan_rows(job, plan).items():
        table.add_row(key, value)
    console.print(table)


def plan_rows(job: Job, plan: "Plan") -> dict[str, str]:
    """The plan in words."""
    from orchestration.job.plan import learning_rate_at  # numpy

    accelerator = job.cluster.accelerator
    device = f"{accelerator.type} GPUs" if accelerator.is_gpu else "CPU ranks"
    share = "" if plan.is_even else ", uneven: some ranks wait"
    rates = ", ".join(
        f"epoch {plan.epoch_at(step):.3g}: {learning_rate_at(job, plan, step):.4g}"
        for step in sorted(
            {0, plan.warmup_steps, plan.total_steps // 2, max(plan.total_steps - 1, 0)}
        )
    )
    writes = len(
        set(plan.epoch_ends)
        | set(range(job.checkpoint.every_steps or 0, plan.total_steps, job.checkpoint.every_steps))
        if job.checkpoint.every_steps
        else set(plan.epoch_ends)
    )
    return {
        "ranks": f"{plan.world_size} ({plan.num_nodes} x {plan.ranks_per_node} {device})",
        "samples": f"{plan.train_samples:,} train, {plan.val_samples:,} held out",
        "global batch": f"{plan.global_batch_size} = {plan.num_micro_batches} micro-batches of "
        f"{plan.micro_batch_size}; {plan.max_micro_batches_per_rank} a rank{share}",
        "steps": f"{plan.total_steps:,} ({plan.steps_per_epoch:,.2f} an epoch, "
        f"{plan.warmup_steps:,} warm-up)",
        "learning rate": rates,
        "order": f"{job.data.shuffle.lanes} lanes x {job.data.shuffle.pieces} pieces x "
        f"{job.data.shuffle.slices} slices, seed {job.seed}{_reads(job, plan)}",
        "loader": _loader_row(plan),
        "parameters": f"{plan.parameters:,} ({plan.side_head_parameters:,} in the side head)",
        "multiply-adds": f"{plan.multiply_adds / 1e9:.3f} G an image, forward",
        "training compute": f"{plan.training_flops_per_image / 1e9:.2f} GFLOP an image, "
        f"{plan.training_flops / 1e15:.3g} PFLOP in all",
        "all-reduce": f"{plan.gradient_bytes / 1e6:.1f} MB a step",
        "checkpoints": f"{writes} of about {plan.checkpoint_bytes / 1e6:.0f} MB, the newest "
        f"{job.checkpoint.keep} stay in {job.checkpoint.storage}",
    }


def _reads(job: Job, plan: "Plan") -> str:
    """Where ranks or loader processes share lanes, what that costs and which number of lanes has
    none of it."""
    if plan.reads <= 1:
        return ""
    readers = plan.world_size * max(1, plan.loader_workers)
    lanes = -(-job.data.shuffle.lanes // readers) * readers
    return (
        f"; a byte is read up to {plan.reads:.2g} times an epoch, as {readers} readers share lanes "
        f"(data.shuffle.lanes={lanes} divides evenly)"
    )


def _loader_row(plan: "Plan") -> str:
    who = f"{plan.loader_workers} processes a rank" if plan.loader_workers else "a thread a rank"
    if plan.loader_bytes is None:
        return (
            f"{who}; memory is known with the manifest, or with data.train_shard_samples and "
            "data.train_sample_bytes"
        )
    return f"{who}, about {plan.loader_bytes / 1e6:,.0f} MB of windows and images at most"


def print_outcome(
    console: Console, job: Job, outcome: "Outcome", *, wall_s: float, command: str
) -> None:
    """The panel at a run's end: what it reached, where everything lies, how to look at it."""
    metrics = outcome.metrics
    kept = "val_ema" if "val_ema/top1" in metrics else "val"
    weights = "averaged weights" if kept == "val_ema" else "weights"
    rows = {
        "top-1": f"{metrics[f'{kept}/top1']:.2f} % of the held-out split ({weights})",
        "top-5": f"{metrics[f'{kept}/top5']:.2f} %",
        "speed": f"{outcome.images_per_second:.0f} images/s while training",
        "wall time": f"{wall_s:.0f} s from start to here, {outcome.attempts} attempt"
        f"{'s' if outcome.attempts != 1 else ''}",
        "checkpoint": outcome.checkpoint_url,
        "model": outcome.model_uri or "not logged yet: MLflow was away",
        "MLflow run": outcome.run.run_id,
    }
    endpoint = job.storage.endpoint_url
    where = f" --endpoint-url {endpoint}" if endpoint else ""
    rows["score it"] = f"{command} evaluate {outcome.checkpoint_url.rpartition('/')[0]}{where}"
    if job.tracking.uri == LOCAL:
        rows["look at it"] = f"{command} ui {outcome.run.run_id}"
    else:
        rows["look at it"] = f"{outcome.run.uri.rstrip('/')}{outcome.run.page}"
    print_panel(console, outcome.run_name, rows)


def print_panel(console: Console, title: str, rows: dict[str, str]) -> None:
    """A closing panel of names and values; long values stay whole, to be copied."""
    if not console.is_terminal:
        console.print(title)
        for key, value in rows.items():
            console.print(f"  {key}: {value}", soft_wrap=True)
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(key, value)
    console.print(Panel(table, title=title, expand=False))


def print_json(value: object) -> None:
    """One JSON value on standard output, for machines."""
    print(json.dumps(value, indent=2))  # noqa: T201 - the one output that must stay plain


def kept_for_json(as_json: bool) -> contextlib.AbstractContextManager[object]:
    """Where JSON is to come, nothing else goes to standard output within the block: Ray prints the
    deaths of workers there, whatever it is told."""
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()


def echo(line: str) -> None:
    """One line of progress."""
    # Another program's words may hold brackets that rich would take for markup.
    Console(highlight=False).print(f"- {line}", soft_wrap=True, markup=False)


def own_name() -> str:
    """How this command was called, as the reader would type it again."""
    called = Path(sys.argv[0])
    try:
        return str(called.resolve().relative_to(Path.cwd()))
    except ValueError:
        return called.name
