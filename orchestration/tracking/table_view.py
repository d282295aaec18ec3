"""The columns in which MLflow's table of runs is worth a look: a saved view of the experiment.

MLflow's UI (3.17) keeps a view as a tag of the experiment: a name, two times, and as a string of
JSON the part of its own state that the view sets. It stands in the menu "Views" of the table under
its name, and opens by a link that names its id. By itself the UI shows source, models and data.
"""

import json

AS_TRAINING = "?workflowType=machine_learning"  # shows that menu, not the generative one
VIEW_ID = "rayception"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_ID}"
# Columns that the table has anyway, as its own code calls them.
ALWAYS = ("attributes.`Run Name`", "attributes.`Created`", "duration")
WIDTHS = {"attributes.`Run Name`": 330}  # pixels: a run's name is told apart by its end
METRICS = (
    "val_ema/top1",
    "val/top1",
    "val/loss",
    "train/loss",
    "train/epoch",
    "train/images_per_second",
    "run/goodput",
    "run/rank_hours",
    "run/dollars",
)
TAGS = ("rayception.accelerator", "rayception.world_size", "rayception.attempts")
PARAMS = (
    "model.name",
    "model.input_size",
    "optim.name",
    "optim.lr",
    "data.global_batch_size",
    "schedule.epochs",
    "seed",
)


def saved_view() -> str:
    """The value of VIEW_TAG."""
    columns = [
        *(f"metrics.`{name}`" for name in METRICS),
        *(f"tags.`{name}`" for name in TAGS),
        *(f"params.`{name}`" for name in PARAMS),
    ]
    state = {
        "selectedColumns": columns,
        "columnOrder": [*ALWAYS, *columns],
        "columnWidths": WIDTHS,
    }
    return json.dumps({"name": VIEW_ID, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)})


def table_page(experiment_id: str, *, has_view: bool = True) -> str:
    """The path of an experiment's table, to append to the server's URL; in that view where it has
    it (the UI answers with an error where it has not)."""
    view = f"&viewStateShareKey={VIEW_ID}" if has_view else ""
    return f"/#/experiments/{experiment_id}/runs{AS_TRAINING}&compareRunsMode=TABLE{view}"
