"""Ray Train's controller, run within the driver process.

Ray Train runs it as an actor, and starts four more: a manager of Ray Data's datasets, an
autoscaling coordinator, a placement-group cleaner and a state manager. Each imports Ray Train, two
seconds of CPU, before the first rank may start. None is needed here: the driver lives as long as
the run, its death frees its resources, its placement group asks the autoscaler directly, and MLflow
records the run. Only a submission keeps its states, for the dashboard and for `rayception logs
--rank`. (Relies on private classes of Ray, from 2.60 on; the tests of whole runs cover newer ones.)
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

from orchestration.stack.local import Log

UNUSED = (DatasetsCallback, StateManagerCallback, PlacementGroupCleanerCallback)

# Its log is for Ray's developers; failures reach the driver as errors.
logging.getLogger("ray.train").addHandler(logging.NullHandler())
logging.getLogger("ray.train").propagate = False


class DriverTrainer(DataParallelTrainer):  # type: ignore[misc]
    """A trainer whose controller is not an actor. `fit` raises as Ray's does."""

    progress_actor: Any
    log: Log
    keeps_states = False
    interrupts = 0

    def interrupt(self, *_: object) -> None:
        """The signal handler while it trains: the first signal asks the ranks to checkpoint and
        stop, the second ends them."""
        self.interrupts += 1
        is_training = ray.get(self.progress_actor.read.remote(), timeout=10) is not None
        if self.interrupts == 1 and is_training:
            self.progress_actor.request_stop.remote(0.0)
            self.log("stopping after a checkpoint (again: at once)")
            return
        raise KeyboardInterrupt  # fit() ends the ranks

    def _create_default_callbacks(self) -> list[Any]:
        defaults = super()._create_default_callbacks()
        callbacks = [callback for callback in defaults if not isinstance(callback, UNUSED)]
        return callbacks + ([_States(self.progress_actor)] if self.keeps_states else [])

    def _initialize_and_run_controller(self, **settings: Any) -> Result:
        settings["scaling_policy"] = _Policy(self.scaling_config)
        controller = _Controller(**settings)
        try:
            asyncio.run(controller.run())
            return controller.get_result()
        except BaseException:
            group = controller.get_worker_group()
            if group is not None:
                with contextlib.suppress(Exception):  # the group may be incomplete
                    group.abort()
            raise


class _Policy(FixedScalingPolicy):  # type: ignore[misc]
    """Without the autoscaling coordinator."""

    def after_controller_start(self, train_run_context: Any) -> None: ...

    def _maybe_send_resource_request(self) -> None: ...


class _States(StateManagerCallback):  # type: ignore[misc]
    """A run counts as alive while its controller's actor is: here, the progress actor."""

    def __init__(self, progress_actor: Any) -> None:
        super().__init__(datasets={})
        self._controller_actor_id = progress_actor._actor_id.hex()

    def after_controller_start(self, train_run_context: Any) -> None:
        self._state_manager, self._run_id = TrainStateManager(), train_run_context.run_id
        with warnings.catch_warnings():  # Ray Train itself uses what Ray Data has deprecated
            warnings.simplefilter("ignore", RayDeprecationWarning)
            self._state_manager.create_train_run(
                id=self._run_id,
                name=train_run_context.run_config.name,
                job_id=ray.get_runtime_context().get_job_id(),
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
        """As Ray's, but kills the actor that synchronizes ray.train.report before its process has
        imported Ray Train: ranks here synchronize in torch's process group alone."""
        with_sync_actor = worker_group_state_builder.with_sync_actor

        def kill_sync_actor(actor: Any) -> WorkerGroupStateBuilder:
            ray.kill(actor)
            return with_sync_actor(actor)

        worker_group_state_builder.with_sync_actor = kill_sync_actor
        super()._start_impl(worker_group_state_builder)

    def _init_train_context_on_workers(
        self, workers: list[Any], sync_actor: Any, train_context_args: dict[str, list[Any]]
    ) -> None:
        """As Ray's, but without the controller, which only ray.train.report would call."""
        contexts = [
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
        ray.get(contexts)
        self._decorate_worker_log_file_paths(workers)


class _Controller(TrainController):  # type: ignore[misc]
    worker_group_cls = _WorkerGroup
