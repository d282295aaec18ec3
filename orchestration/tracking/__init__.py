"""MLflow: runs, metrics, models. The only importer of mlflow.

Every call is bounded: MLflow's own default would retry for minutes where the server is away.
"""

import os

# Read by mlflow at its import. One retry answers a blip; an outage is the writer's to wait out.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
