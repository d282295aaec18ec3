"""MLflow: runs, metrics, models. The only importer of mlflow.

| module | what it holds |
|---|---|
| runs | MLflow runs: opened, resumed, closed; tags and artifacts |
| run_ref | a run's place in MLflow; imports no mlflow |
| writer | metric points, sent in the background |
| outbox | what MLflow has not received yet, stored in the run's folder |
| model | the trained model: logged and registered |
| served | the code stored with a logged model |
| server_app | the embedded server's application, behind the stack's token |
| credentials | what our own clients log in with |
| mlflow_errors | what a failed call to MLflow means, with its remedy |
| table | runs searched and compared |
| table_view | the saved columns of an experiment's table |

MLflow's own default would retry a call for minutes while the server is down. The variables that
limit this are set here, before any module of the package imports mlflow.
"""

import os

# One retry covers a blip; the writer waits out an outage.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
# A 429 may ask for an hour; the client would sleep it through.
os.environ.setdefault("MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
