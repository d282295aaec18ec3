"""Where a run is in MLflow. Apart from the client, whose import costs each process a second: a rank
that sends no metrics needs none."""

from dataclasses import dataclass

from orchestration.tracking.table_view import AS_TRAINING


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRef:
    """A run on a tracking server: all that a worker needs to know of MLflow."""

    uri: str
    experiment_id: str
    run_id: str

    @property
    def page(self) -> str:
        """The path of the run's charts in the UI, to append to the server's URL."""
        return f"{self._path}/model-metrics{AS_TRAINING}"

    @property
    def overview(self) -> str:
        """That of its description, params and tags."""
        return f"{self._path}{AS_TRAINING}"

    @property
    def _path(self) -> str:
        return f"/#/experiments/{self.experiment_id}/runs/{self.run_id}"
