"""The verbs about trained networks: evaluate, predict, export."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from inception.errors import unknown_name
from orchestration.cli.data import AsJson, Endpoint, progress_bar, quiet, using_store
from orchestration.cli.tables import echo, kept_for_json, print_json, print_panel
from orchestration.cluster.connect import on_cluster
from orchestration.errors import JobError
from orchestration.job.load import override
from orchestration.job.rules import choose

console = Console(highlight=False)
CROPS = (1, 12, 144)
Crops = Annotated[int, typer.Option(help="Crops of an image: 1, 12 or 144.")]
Checkpoint = Annotated[
    str,
    typer.Option(
        "--checkpoint",
        help="URL of a run's folder (its newest checkpoint) or of a checkpoint, or the path of an "
        "exported .safetensors file.",
    ),
]


def evaluate(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT... [FIELD=VALUE]...",
            help="URLs of runs or checkpoints (several are an ensemble); overrides of the job.",
        ),
    ],
    crops: Crops = 1,
    weights: Annotated[str, typer.Option(help="raw, average or both.")] = "both",
    blacklist: Annotated[
        Path | None, typer.Option(help="File of images that do not count, one name a line.")
    ] = None,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Score checkpoints on the job's held-out split, over its workers; results go to MLflow."""
    urls = tuple(argument.rstrip("/") for argument in arguments if "=" not in argument)
    overrides = [argument for argument in arguments if "=" in argument]
    if not urls:
        raise JobError("CHECKPOINT: got none; evaluating needs at least one. Name a run's folder.")
    _check_crops(crops)
    choose("--weights", weights, ("raw", "average", "both"))
    entries = _read_blacklist(blacklist) if blacklist is not None else []
    with kept_for_json(as_json), using_store(endpoint_url) as store:
        from orchestration.evaluation.trained import load_trained

        found = [load_trained(store, url) for url in urls]
        job = override(found[0].job, overrides)
        with on_cluster(job, quiet) as stack, progress_bar() as bar:
            from orchestration.evaluation.evaluate_run import evaluate_run

            task = bar.add_task("chunks scored", total=None)
            result = evaluate_run(
                store, found, job, stack, crops=crops, weights=weights, blacklist=entries,
                on_total=lambda total: bar.update(task, total=total),
                on_chunk=lambda: bar.advance(task),
            )  # fmt: skip
    if as_json:
        print_json(result)
        return
    table = Table("weights", "images", "top-1", "top-5", "loss", "calibration error")
    for kind, one in result["weights"].items():
        table.add_row(
            kind, f"{one['images']:,}", f"{one['top1']:.2f} %", f"{one['top5']:.2f} %",
            f"{one['loss']:.4f}", f"{one['calibration_error']:.2f} %",
        )  # fmt: skip
    console.print(table)
    rows = {
        "crops": str(crops),
        "left out": f"{result['blacklisted']} blacklisted, {result['damaged']} damaged",
        "worst classes": ", ".join(
            f"{name} {share:.1f} %" for name, _, share in result["worst_classes"]
        ),
        "most confused": ", ".join(
            f"{truth} as {said} {count}" for truth, said, count in result["most_confused"]
        ) or "nothing",
        "MLflow run": result["run_id"] or "none: not from a run",
    }  # fmt: skip
    print_panel(console, " + ".join(urls), rows)


def predict(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files or URLs.")],
    checkpoint: Checkpoint,
    top: Annotated[int, typer.Option(min=1, max=5, help="Classes to print.")] = 5,
    crops: Crops = 1,
    weights: Annotated[
        str | None, typer.Option(help="raw or average (where there is one).")
    ] = None,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Say what is on images: the likeliest classes of each."""
    from orchestration.evaluation.trained import WEIGHTS, load_trained, look_at

    _check_crops(crops)
    if weights is not None:
        choose("--weights", weights, WEIGHTS)
    contents = {}
    with using_store(endpoint_url) as store:
        trained = load_trained(store, checkpoint)
        for image in images:
            contents[image] = store.read(image) if "://" in image else _read_file(image)
    found = look_at(trained, contents, crops=crops, kind=weights or trained.best, top=top)
    if as_json:
        print_json(
            {name: [{"class": c, "probability": p} for c, p in rows] for name, rows in found}
        )
        return
    for name, rows in found:
        console.print(name, soft_wrap=True, markup=False)
        width = max(len(c) for c, _ in rows)
        for label, p in rows:
            bar = "█" * round(20 * p)
            console.print(f"  {label:<{width}}  {100 * p:6.2f} %  {bar}", markup=False)


def export(
    checkpoint: Annotated[str, typer.Argument(help="URL of a run's folder or of a checkpoint.")],
    to: Annotated[Path, typer.Option(help="File to write: .safetensors, .pt2 or .onnx.")],
    weights: Annotated[
        str | None, typer.Option(help="raw or average (where there is one).")
    ] = None,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint's network as safetensors, torch.export (.pt2) or ONNX."""
    from orchestration.evaluation.export import FORMATS, write
    from orchestration.evaluation.trained import WEIGHTS, load_trained

    if to.suffix not in FORMATS:
        raise JobError(
            f"--to: got {str(to)!r}; a name that ends in {', '.join(FORMATS)} says what to write. "
            "Write it so."
        )
    if weights is not None:
        choose("--weights", weights, WEIGHTS)
    with using_store(endpoint_url) as store:
        trained = load_trained(store, checkpoint)
    kind = weights or trained.best
    write(trained, kind, to)
    size = to.stat().st_size
    if as_json:
        print_json({"file": str(to), "weights": kind, "step": trained.step, "size_bytes": size})
        return
    echo(f"{kind} weights of step {trained.step:,} in {to} ({size / 1e6:.1f} MB)")


def _check_crops(crops: int) -> None:
    if crops not in CROPS:
        raise JobError(str(unknown_name("--crops", crops, [str(c) for c in CROPS])))


def _read_blacklist(path: Path) -> list[str]:
    content = _read_file(str(path)).decode(errors="replace")
    lines = [line.strip() for line in content.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _read_file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise JobError(
            f"{path}: got {error.strerror}; a file that can be read. Mend the path."
        ) from error
