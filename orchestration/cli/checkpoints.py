"""Commands on trained networks: evaluate, predict, export."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from inception.errors import unknown_name
from orchestration.cli.data import AsJson, Endpoint, ignore_line, progress_bar, using_store
from orchestration.cli.tables import panel, print_result, reserve_stdout
from orchestration.cluster.connect import open_cluster
from orchestration.errors import JobError
from orchestration.job.load import apply_overrides
from orchestration.job.rules import check_choice
from orchestration.run.metrics import AVERAGE, RAW

CROPS = (1, 12, 144)
Crops = Annotated[int, typer.Option(help="Crops of an image: 1, 12 or 144.")]
Weights = Annotated[
    str | None, typer.Option(help="raw, or average if there is one. Left out: average, else raw.")
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
        Path | None, typer.Option(help="File of images to leave out, one name a line.")
    ] = None,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Score checkpoints on the job's validation split, on its workers; logs to MLflow."""
    urls = tuple(argument.rstrip("/") for argument in arguments if "=" not in argument)
    overrides = [argument for argument in arguments if "=" in argument]
    if not urls:
        raise JobError("CHECKPOINT: got none; evaluating needs at least one. Name a run's folder.")
    _check_crops(crops)
    check_choice("--weights", weights, (RAW, AVERAGE, "both"))
    blacklisted = _read_blacklist(blacklist) if blacklist is not None else []
    with reserve_stdout(as_json), using_store(endpoint_url) as store:
        from orchestration.evaluation.trained import load_trained

        members = [load_trained(store, url) for url in urls]
        job = apply_overrides(members[0].job, overrides)
        module = "orchestration.evaluation.evaluate_run"
        with open_cluster(job, ignore_line, module=module) as stack, progress_bar() as bar:
            from orchestration.evaluation.evaluate_run import evaluate_run

            task = bar.add_task("chunks scored", total=None)
            result = evaluate_run(
                store, members, job, stack, crops=crops, weights=weights, blacklist=blacklisted,
                on_progress=lambda done, total: bar.update(task, completed=done, total=total),
            )  # fmt: skip
    table = Table("weights", "images", "top-1", "top-5", "loss", "calibration error")
    for kind, scores in result["weights"].items():
        table.add_row(
            kind, f"{scores['images']:,}", f"{scores['top1']:.2f} %", f"{scores['top5']:.2f} %",
            f"{scores['loss']:.4f}", f"{scores['calibration_error']:.2f} %",
        )  # fmt: skip
    worst = [f"{name} {top1:.1f} %" for name, _, top1 in result["worst_classes"]]
    confused = [f"{truth} as {label} {count}" for truth, label, count in result["most_confused"]]
    rows = {
        "crops": str(crops),
        "left out": f"{result['blacklisted']} blacklisted, {result['damaged']} damaged",
        "worst classes": ", ".join(worst),
        "most confused": ", ".join(confused) or "nothing",
        "MLflow run": result["run_id"] or "none: the checkpoint is not from a run",
    }
    print_result(as_json, result, table, panel(" + ".join(urls), rows))


def predict(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files or URLs.")],
    checkpoint: Annotated[
        str,
        typer.Option(
            help="URL of a run's folder (its newest checkpoint) or of a checkpoint, or the path of "
            "an exported .safetensors file."
        ),
    ],
    top: Annotated[int, typer.Option(min=1, max=5, help="Classes to print.")] = 5,
    crops: Crops = 1,
    weights: Weights = None,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Classify images: prints the most probable classes of each."""
    from orchestration.evaluation.trained import WEIGHTS, classify, load_trained

    _check_crops(crops)
    check_choice("--weights", weights, WEIGHTS)
    contents = {}
    with using_store(endpoint_url) as store:
        trained = load_trained(store, checkpoint)
        for image in images:
            contents[image] = store.read(image) if "://" in image else _read_file(image)
    predictions = classify(trained, contents, crops=crops, kind=weights or trained.best, top=top)
    values, lines = {}, []
    for name, classes in predictions:
        values[name] = [{"class": label, "probability": p} for label, p in classes]
        lines.append(name)
        width = max(len(label) for label, _ in classes)
        for label, p in classes:
            lines.append(f"  {label:<{width}}  {100 * p:6.2f} %  {'█' * round(20 * p)}")
    print_result(as_json, values, *lines)


def export(
    checkpoint: Annotated[str, typer.Argument(help="URL of a run's folder or of a checkpoint.")],
    to: Annotated[Path, typer.Option(help="File to write: .safetensors, .pt2 or .onnx.")],
    weights: Weights = None,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint's network as safetensors, torch.export (.pt2) or ONNX."""
    from orchestration.evaluation.export import FORMATS, export_network
    from orchestration.evaluation.trained import WEIGHTS, load_trained

    if to.suffix not in FORMATS:
        raise JobError(
            f"--to: got {str(to)!r}; its name ends in {', '.join(FORMATS)}, which decides the "
            "format. Choose one of these endings."
        )
    check_choice("--weights", weights, WEIGHTS)
    with using_store(endpoint_url) as store:
        trained = load_trained(store, checkpoint)
    kind = weights or trained.best
    export_network(trained, kind, to)
    size = to.stat().st_size
    print_result(
        as_json,
        {"file": str(to), "weights": kind, "step": trained.step, "size_bytes": size},
        f"{kind} weights of step {trained.step:,} in {to} ({size / 1e6:.1f} MB)",
    )


def _check_crops(crops: int) -> None:
    if crops not in CROPS:
        raise JobError(str(unknown_name("--crops", crops, [str(known) for known in CROPS])))


def _read_blacklist(path: Path) -> list[str]:
    content = _read_file(str(path)).decode(errors="replace")
    lines = [line.strip() for line in content.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _read_file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise JobError(
            f"{path}: got {error.strerror}; a file that can be read. Correct the path."
        ) from error
