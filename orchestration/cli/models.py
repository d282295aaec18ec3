"""The command about networks: models."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from inception.cost import Cost, count_cost
from inception.family import MODEL_NAMES, build_architecture
from orchestration.cli.data import AsJson
from orchestration.cli.tables import print_result
from orchestration.job.load import load_options


def models(
    name: Annotated[str | None, typer.Argument(help="One network, stage by stage.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[OPTION=VALUE]...", help="Its options, such as stem=79."),
    ] = None,
    input_size: Annotated[
        int | None, typer.Option(min=1, help="Side of the input, pixels. Left out: as published.")
    ] = None,
    width: Annotated[float, typer.Option(min=0.01, help="Scale of every layer's channels.")] = 1.0,
    num_classes: Annotated[int, typer.Option(min=2, help="Classes.")] = 1000,
    as_json: AsJson = False,
) -> None:
    """List the networks with their cost; or one, stage by stage."""
    options = load_options(overrides or [])
    values, tables = {}, []
    networks = Table("network", "input", "parameters", "of side heads", "G multiply-adds")
    for network in MODEL_NAMES if name is None else (name,):
        architecture = build_architecture(
            network, num_classes=num_classes, input_size=input_size, width=width, options=options
        )
        cost = count_cost(architecture)
        aux_parameters = cost.aux_head_parameters
        values[network] = {
            "input_size": architecture.input_size,
            "parameters": cost.parameters,
            "side_head_parameters": aux_parameters,  # as in plan and model.side_head
            "multiply_adds": cost.multiply_adds,
            "stages": [asdict(stage) for stage in cost.stages],
        }
        networks.add_row(
            network,
            f"{architecture.input_size}",
            f"{cost.parameters - aux_parameters:,}",
            f"{aux_parameters:,}" if aux_parameters else "none",
            f"{cost.multiply_adds / 1e9:.3f}",
        )
        if name is not None:
            tables.append(_stage_table(architecture.input_size, cost))
    print_result(as_json, values, *tables, networks)


def _stage_table(input_size: int, cost: Cost) -> Table:
    """The values that a stage passes on are its grid times its channels; by the first design
    principle of the Inception papers they shrink gently, without an early bottleneck."""
    table = Table("stage", "grid x channels", "values", "parameters", "G multiply-adds")
    table.add_row("input", f"{input_size} x {input_size} x 3", f"{3 * input_size**2:,}", "", "")
    for stage in cost.stages:
        table.add_row(
            stage.name,
            f"{stage.grid} x {stage.grid} x {stage.channels}",
            f"{stage.grid**2 * stage.channels:,}",
            f"{stage.parameters:,}" if stage.parameters else "",
            f"{stage.multiply_adds / 1e9:.3f}" if stage.multiply_adds else "",
        )
    return table
