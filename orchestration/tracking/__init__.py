"""MLflow: runs, metrics, models. The only importer of mlflow.

| module | what it holds |
|---|---|
| runs | opening, resuming and closing MLflow runs; artifacts |
| run_ref | where a run is in MLflow; light |
| writer | metric points sent in the background |
| outbox | what MLflow has not received yet, kept in the run's storage |
| model | the trained model: logged and registered |
| served | the code stored with a logged model |
| table | runs searched and compared |
| table_view | the saved columns of an experiment's table |

Every call is bounded: MLflow's own default would retry for minutes while the server is down. Its
variables are set here, before any module of the package imports mlflow.
"""

import os

# One retry covers a blip; the writer waits out an outage.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
