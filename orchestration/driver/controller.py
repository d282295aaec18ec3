"""Ray Train's controller, run within the driver.

Ray Train starts it as an actor, and with it a manager of Ray Data's sets, a coordinator of
autoscaling, a cleaner of placement groups and a keeper of states: five processes that each import
Ray Train, two seconds of CPU apiece, before the first rank may start. Nothing here needs them: the
driver lives as long as the run does, its death frees what it held, its placement group asks the
autoscaler by itself, and what a run does stands in MLflow. Of a submission alone the states are
kept, for the dashboard and for `rayception logs --rank`. (Written against Ray's private classes, of
which 2.60 is the oldest; the tests of whole runs hold it to newer ones.)
"""

import asyncio
import contextlib
import logging
import warnings
from typing import Any

import ray
from ray.train import Result
from ray.train.v2._internal.callbacks import DatasetsCallback, StateManagerCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.state import WorkerGroupStateBuilder
from ray.train.v2._internal.state.state_manager import TrainStateManager
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.annotations import RayDeprecationWarning

UNUSED = (DatasetsCallback, StateManagerCallback, PlacementGroupCleanerCallback)


class DriverTrainer(DataParallelTrainer):  # type: ignore[misc]
    """A trainer whose controller is no actor. `fit` raises as Ray's does."""

    progress_actor: Any  # the progress actor
    keeps_states = False
    controller: "_Controller | None" = None  # of the present fit

    def abort(self) -> None:
        """Ends the ranks where they are."""
        group = self.controller.get_worker_group() if self.controller is not None else None
        if group is not None:
            with contextlib.suppress(Exception):  # half of it may be there; what led here is told
                group.abort()

    def _create_default_callbacks(self) -> list[Any]:
        made = super()._create_default_callbacks()
        used = [one for one in made if not isinstance(one, UNUSED)]
        return used + ([_States(self.progress_actor)] if self.keeps_states else [])

    def _initialize_and_run_controller(self, **settings: Any) -> Result:
        settings["scaling_policy"] = _Policy(self.scaling_config)
        self.controller = _Controller(**settings)
        try:
            asyncio.run(self.controller.run())
            return self.controller.get_result()
        except BaseException:
            self.abort()
            raise
        finally:
            self.controller = None


class _Policy(FixedScalingPolicy):  # type: ignore[misc]
    """Without the coordinator."""

    def after_controller_start(self, train_run_context: Any) -> None: ...

    def _maybe_send_resource_request(self) -> None: ...


class _States(StateManagerCallback):  # type: ignore[misc]
    """A run counts as alive while its controller's actor is: here, the progress actor."""

    def __init__(self, progress_actor: Any) -> None:
        super().__init__(datasets={})
        self._controller_actor_id = progress_actor._actor_id.hex()

    def after_controller_start(self, train_run_context: Any) -> None:
        self._state_manager = TrainStateManager()
        self._run_name = train_run_context.get_run_config().name
        self._run_id = train_run_context.run_id
        self._job_id = ray.get_runtime_context().get_job_id()
        with warnings.catch_warnings():  # Ray Train's own use of what Ray Data deprecates
            warnings.simplefilter("ignore", RayDeprecationWarning)
            self._state_manager.create_train_run(
                id=self._run_id,
                name=self._run_name,
                job_id=self._job_id,
                controller_actor_id=self._controller_actor_id,
                controller_log_file_path=None,
                run_config=train_run_context.run_config,
                train_loop_config=None,
                scaling_config=train_run_context.scaling_config,
                backend_config=train_run_context.backend_config,
                datasets={},
                dataset_config=train_run_context.dataset_config,
            )


class _WorkerGroup(WorkerGroup):  # type: ignore[misc]
    def _start_impl(self, worker_group_state_builder: WorkerGroupStateBuilder) -> None:
        """As Ray's, but the actor at which ray.train.report waits ends before its process has
        imported Ray Train: ranks here wait for each other in torch's process group alone."""
        keep = worker_group_state_builder.with_sync_actor

        def end(actor: Any) -> WorkerGroupStateBuilder:
            ray.kill(actor)
            return keep(actor)

        worker_group_state_builder.with_sync_actor = end
        super()._start_impl(worker_group_state_builder)

    def _init_train_context_on_workers(
        self, workers: list[Any], sync_actor: Any, train_context_args: dict[str, list[Any]]
    ) -> None:
        """As Ray's, but no rank knows the controller: only ray.train.report would want it."""
        made = [
            worker.actor.init_train_context.remote(
                train_run_context=self._train_run_context,
                distributed_context=worker.distributed_context,
                synchronization_actor=sync_actor,
                storage_context=self._storage_context,
                worker_callbacks=self._worker_callbacks_to_propagate,
                controller_actor=None,
                **{name: values[i] for name, values in train_context_args.items()},
            )
            for i, worker in enumerate(workers)
        ]
        ray.get(made)
        self._decorate_worker_log_file_paths(workers)


# What it says of itself is for Ray's authors; what went wrong reaches the driver as an error.
logging.getLogger("ray.train").addHandler(logging.NullHandler())
logging.getLogger("ray.train").propagate = False


class _Controller(TrainController):  # type: ignore[misc]
    worker_group_cls = _WorkerGroup
