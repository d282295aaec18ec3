"""The columns of an experiment's table of runs, as a saved view of MLflow's UI.

The UI (3.17) stores a view as a tag of the experiment: a name, two times, and as a JSON string the
part of the UI's state that the view sets. The view is listed in the table's menu "Views" and opens
by a link with its id. The default columns show source, models and data.
"""

import json

AS_TRAINING = "?workflowType=machine_learning"  # shows that menu, not the generative-AI one
VIEW_ID = "rayception"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_ID}"
# Columns that the table always has, by their names in the UI's code.
ALWAYS = ("attributes.`Run Name`", "attributes.`Created`", "duration")
WIDTHS = {"attributes.`Run Name`": 330}  # pixels: names of runs differ at their end
COLUMNS = {
    "metrics": (
        "val_ema/top1", "val/top1", "val/loss", "train/loss", "train/epoch",
        "train/images_per_second", "run/goodput", "run/rank_hours", "run/dollars",
    ),
    "tags": ("rayception.accelerator", "rayception.world_size", "rayception.attempts"),
    "params": (
        "model.name", "model.input_size", "optim.name", "optim.lr", "data.global_batch_size",
        "schedule.epochs", "seed",
    ),
}  # fmt: skip


def saved_view() -> str:
    """The value of VIEW_TAG."""
    columns = [f"{kind}.`{name}`" for kind, names in COLUMNS.items() for name in names]
    order = [*ALWAYS, *columns]
    state = {"selectedColumns": columns, "columnOrder": order, "columnWidths": WIDTHS}
    return json.dumps({"name": VIEW_ID, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)})


def table_page(experiment_id: str, *, has_view: bool = True) -> str:
    """The path of an experiment's table, to append to the server's URL. has_view: the experiment
    has the saved view; without it, a link to it leads to an error page."""
    view = f"&viewStateShareKey={VIEW_ID}" if has_view else ""
    return f"/#/experiments/{experiment_id}/runs{AS_TRAINING}&compareRunsMode=TABLE{view}"
