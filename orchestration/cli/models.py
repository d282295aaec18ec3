"""The verb about networks: models."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from inception.cost import count_cost
from inception.family import MODEL_NAMES, build_architecture
from orchestration.cli.tables import print_json
from orchestration.job.load import load_options

console = Console(highlight=False)


def models(
    name: Annotated[str | None, typer.Argument(help="One of them, stage by stage.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[OPTION=VALUE]...", help="Its options, such as stem=79."),
    ] = None,
    input_size: Annotated[
        int | None, typer.Option(min=1, help="Pixels of a side. Left out: as published.")
    ] = None,
    width: Annotated[float, typer.Option(min=0.01, help="Scale of every layer's channels.")] = 1.0,
    num_classes: Annotated[int, typer.Option(min=2, help="Classes.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
) -> None:
    """List the networks and what they cost; or one, stage by stage."""
    names = MODEL_NAMES if name is None else (name,)
    options = load_options(overrides or [])
    costs = {}
    for one in names:
        architecture = build_architecture(
            one, num_classes=num_classes, input_size=input_size, width=width, options=options
        )
        costs[one] = (architecture.input_size, count_cost(architecture))
    if as_json:
        print_json({one: {"input_size": size, **asdict(c)} for one, (size, c) in costs.items()})
        return
    if name is not None:
        size, cost = costs[name]
        # The paper's first principle: no early bottleneck. Values a stage hands on are its grid
        # times its channels; they should shrink gently.
        table = Table("stage", "grid x channels", "values", "parameters", "G multiply-adds")
        table.add_row("input", f"{size} x {size} x 3", f"{3 * size * size:,}", "", "")
        for stage in cost.stages:
            table.add_row(
                stage.name,
                f"{stage.grid} x {stage.grid} x {stage.channels}",
                f"{stage.grid**2 * stage.channels:,}",
                f"{stage.parameters:,}" if stage.parameters else "",
                f"{stage.multiply_adds / 1e9:.3f}" if stage.multiply_adds else "",
            )
        console.print(table)
    table = Table("network", "input", "parameters", "of side heads", "G multiply-adds")
    for one, (size, cost) in costs.items():
        table.add_row(
            one,
            f"{size}",
            f"{cost.parameters - cost.side_head_parameters:,}",
            f"{cost.side_head_parameters:,}" if cost.side_head_parameters else "none",
            f"{cost.multiply_adds / 1e9:.3f}",
        )
    console.print(table)
