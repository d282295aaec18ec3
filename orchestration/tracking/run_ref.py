"""A run's place in MLflow. Importing it loads no client, which takes a second: a rank that sends no
metrics needs none."""

from dataclasses import dataclass

from orchestration.tracking.table_view import AS_TRAINING


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRef:
    """A run on a tracking server. The pages are paths to append to the server's URL."""

    uri: str
    experiment_id: str
    run_id: str

    @property
    def page(self) -> str:
        """The run's charts."""
        return f"{self._path}/model-metrics{AS_TRAINING}"

    @property
    def overview(self) -> str:
        """Its description, params and tags."""
        return f"{self._path}{AS_TRAINING}"

    @property
    def _path(self) -> str:
        return f"/#/experiments/{self.experiment_id}/runs/{self.run_id}"
