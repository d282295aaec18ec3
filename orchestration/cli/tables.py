"""What commands print: JSON for machines; lines, tables and panels for people."""

import contextlib
import json
import shlex
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from orchestration.job.cluster import LOCAL
from orchestration.job.job import Job
from orchestration.job.plan import Plan, learning_rate_at

if TYPE_CHECKING:
    from orchestration.driver.driver import Outcome

WIDE = 400  # columns of a table in a file or a pipe, where no cell is to be cut
# No markup: names and messages of other programs may hold brackets.
make_console = partial(Console, highlight=False, markup=False, emoji=False)
console = make_console()


def print_result(as_json: bool, value: object, *shown: RenderableType) -> None:
    """The result of a command: `value` as JSON, or what is shown to people."""
    if as_json:
        print_json(value)
        return
    screen = console if console.is_terminal else make_console(width=WIDE)
    for part in shown:
        screen.print(part, soft_wrap=isinstance(part, str | Text))


def print_json(value: object) -> None:
    """One JSON value on standard output."""
    print(to_json(value))  # noqa: T201 - rich would wrap it


def to_json(value: object) -> str:
    """With null for the numbers that JSON does not have: NaN and the infinities."""
    finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
    return json.dumps(finite, indent=2)


def reserve_stdout(as_json: bool) -> contextlib.AbstractContextManager[object]:
    """Sends standard output to standard error for the block if a JSON result follows it: log lines,
    and the deaths of workers, which Ray prints whatever its settings."""
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()


def log_line(line: str) -> None:
    """Prints one line of progress."""
    console.print(f"- {line}", soft_wrap=True)


def program_name() -> str:
    """What a person types to call this program again."""
    path = Path(sys.argv[0])
    # A module that Python runs, as in a submitted job: who reads that has the command elsewhere.
    if path.suffix == ".py":
        return "rayception"
    with contextlib.suppress(ValueError):
        return str(path.resolve().relative_to(Path.cwd()))
    return path.name


def panel(title: str, rows: Mapping[str, str]) -> Panel | str:
    """Names and values in a frame; as lines if the output is no terminal."""
    if not console.is_terminal:
        return "\n".join([title, *(f"  {name}: {value}" for name, value in rows.items())])
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for row in rows.items():
        grid.add_row(*row)
    return Panel(grid, title=Text(title), expand=False)


def outcome_parts(job: Job, outcome: "Outcome", wall_s: float) -> tuple[Panel | str, str]:
    """A run's results, and commands for its next steps: outside the panel, whose border would break
    what is to be copied."""
    metrics = outcome.metrics
    is_averaged = "val_ema/top1" in metrics
    split = "val_ema" if is_averaged else "val"
    rows = {
        "top-1": f"{metrics[f'{split}/top1']:.2f} % on the validation split"
        f"{' (averaged weights)' if is_averaged else ''}",
        "top-5": f"{metrics[f'{split}/top5']:.2f} %",
        "speed": f"{outcome.images_per_second:.0f} images/s during training",
        "wall time": f"{wall_s:.0f} s in all, {outcome.attempts} attempt"
        f"{'s' if outcome.attempts != 1 else ''}",
        "checkpoint": outcome.checkpoint_url,
        **({"digest": outcome.digest} if outcome.digest is not None else {}),
        "model": outcome.model_uri or "not logged yet: MLflow was unreachable",
        "MLflow run": outcome.run.run_id,
    }
    endpoint = job.storage.endpoint_url
    arguments = ["evaluate", outcome.checkpoint_url.rpartition("/")[0]]
    arguments += ["--endpoint-url", endpoint] if endpoint else []
    view = f"{outcome.run.uri.rstrip('/')}{outcome.run.page}"
    if job.tracking.uri == LOCAL:
        view = f"{program_name()} ui {outcome.run.run_id}"
    next_steps = (
        f"Evaluate it:\n  {program_name()} {shlex.join(arguments)}\nView it in MLflow:\n  {view}"
    )
    return panel(outcome.run_name, rows), next_steps


def plan_rows(job: Job, plan: Plan) -> dict[str, str]:
    """Every number that follows from a job, as text."""
    accelerator = job.cluster.accelerator
    device = f"{accelerator.type} GPUs" if accelerator.is_gpu else "CPU ranks"
    share = "" if plan.is_even else ", uneven: some ranks wait"
    rates = ", ".join(
        f"epoch {plan.epoch_at(step):.3g}: {learning_rate_at(job, plan, step):.4g}"
        for step in sorted(
            {0, plan.warmup_steps, plan.total_steps // 2, max(plan.total_steps - 1, 0)}
        )
    )
    every = job.checkpoint.every_steps
    checkpoints = {*plan.epoch_ends, *(range(every, plan.total_steps, every) if every else ())}
    shuffle = job.data.shuffle
    return {
        "ranks": f"{plan.world_size} ({plan.num_nodes} x {plan.ranks_per_node} {device})",
        "samples": f"{plan.train_samples:,} training, {plan.val_samples:,} validation",
        "global batch": f"{plan.global_batch_size} = {plan.num_micro_batches} micro-batches of "
        f"{plan.micro_batch_size}; {plan.max_micro_batches_per_rank} a rank{share}; at most "
        f"{plan.num_micro_batches} ranks can work",
        "a pass": _pass_row(job, plan),
        "steps": f"{plan.total_steps:,} ({plan.steps_per_epoch:,.2f} an epoch, "
        f"{plan.warmup_steps:,} warm-up)",
        "learning rate": rates,
        "order": f"{shuffle.lanes} lanes x {shuffle.pieces} pieces x {shuffle.slices} slices, "
        f"seed {job.seed}{_repeated_reads(job, plan)}",
        "loader": _loader_row(plan),
        "parameters": f"{plan.parameters:,} ({plan.side_head_parameters:,} in the side head)",
        "multiply-adds": f"{plan.multiply_adds / 1e9:.3f} G an image, forward",
        "training compute": f"{plan.training_flops_per_image / 1e9:.2f} GFLOP an image, "
        f"{plan.training_flops / 1e15:.3g} PFLOP in all",
        "gradients": f"{plan.gradient_bytes / 1e6:.1f} MB a step{_partial_sums(plan)}; a rank "
        f"holds at most {plan.gradient_sums} such sums at once",
        "checkpoints": f"{len(checkpoints)} of about {plan.checkpoint_bytes / 1e6:.0f} MB; the "
        f"newest {job.checkpoint.keep} stay in {job.checkpoint.storage}",
    }


def _pass_row(job: Job, plan: Plan) -> str:
    """What a device computes at once."""
    rows, size = plan.micro_batch_size, job.model.bn_group_size
    groups = f" in groups of {size} for batch norm" if size not in (None, rows) else ""
    return (
        f"{rows} images{groups}, {plan.training_flops_per_image * rows / 1e12:.3g} TFLOP, about "
        f"{plan.activation_bytes / 1e9:.3g} GB of activations (half in bfloat16)"
    )


def _partial_sums(plan: Plan) -> str:
    """What it costs if a rank's micro-batches are not whole subtrees of the sum."""
    if plan.partial_sums == 1:
        return ""
    return (
        f" in {plan.partial_sums} partial sums a rank, as {plan.world_size} ranks do not divide "
        f"the order of the sum of {plan.num_micro_batches} micro-batches (a power of two does)"
    )


def _repeated_reads(job: Job, plan: Plan) -> str:
    """What it costs if ranks or loader processes share lanes, and a number of lanes that avoids
    it."""
    if plan.reads <= 1:
        return ""
    readers = plan.world_size * max(1, plan.loader_workers)
    lanes = -(-job.data.shuffle.lanes // readers) * readers
    return (
        f"; a byte is read up to {plan.reads:.2g} times an epoch, as {readers} readers share lanes "
        f"(data.shuffle.lanes={lanes} divides evenly)"
    )


def _loader_row(plan: Plan) -> str:
    workers = (
        f"{plan.loader_workers} processes a rank" if plan.loader_workers else "a thread a rank"
    )
    if plan.loader_bytes is None:
        return (
            f"{workers}; memory is known with the manifest, or with data.train_shard_samples and "
            "data.train_sample_bytes"
        )
    return f"{workers}, at most about {plan.loader_bytes / 1e6:,.0f} MB of windows and images"
