"""Selects the MLflow store, and keeps settings of other programs from changing what is logged and where.

Import this module before MLflow, because MLflow reads some variables when it is imported.
"""

import os
from pathlib import Path

from recipe.core.errors import TrackingError
from recipe.core.paths import home

URI = "MLFLOW_TRACKING_URI"
# Variables that say how to reach the server and its artifacts. All other MLflow variables are removed: for example,
# MLFLOW_RUN_ID or MLFLOW_EXPERIMENT_NAME, which another program may have set, would redirect the run.
KEPT = (
    "MLFLOW_TRACKING_", "MLFLOW_HTTP_", "MLFLOW_ALLOW_", "MLFLOW_WORKSPACE", "MLFLOW_DISABLE_TELEMETRY",
    "MLFLOW_S3_", "MLFLOW_GCS_", "MLFLOW_BOTO_", "MLFLOW_KERBEROS_", "MLFLOW_PYARROW_", "MLFLOW_MYSQL_",
    "MLFLOW_SQLALCHEMYSTORE_", "MLFLOW_DATABRICKS_", "MLFLOW_ARTIFACT_", "MLFLOW_MULTIPART_", "MLFLOW_DOWNLOAD_",
    "MLFLOW_PRESIGNED_", "MLFLOW_ENABLE_MULTIPART_", "MLFLOW_ENABLE_PROXY_", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR",
)  # fmt: skip


def prepare_environment() -> list[str]:
    """Remove MLflow's variables except KEPT, and set the project's own. Return the names of the removed variables.

    Telemetry and the unpickling of artifacts are disabled. MLflow gives up on an unreachable server after seconds, not
    minutes.
    """
    removed = [name for name in os.environ if name.lstrip("_").startswith("MLFLOW_") and not name.startswith(KEPT)]
    for name in removed:
        del os.environ[name]
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    os.environ["MLFLOW_UV_AUTO_DETECT"] = "false"  # otherwise, the lock file of another project may enter a version
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    return sorted(removed)


def default_store(folder: Path) -> Path:
    """Return the folder of the store that is used if MLFLOW_TRACKING_URI is not set: mlflow/ in the repository."""
    return home(folder) / "mlflow"


def database_uri(store: Path) -> str:
    """Return the URI of the database in a store's folder."""
    return f"sqlite:///{store / 'mlflow.db'}"


def check_uri(uri: str) -> None:
    """Raise TrackingError if the URI names a folder of files, which MLflow 3 no longer supports."""
    scheme, _, rest = uri.partition(":")
    folder = rest.removeprefix("//") if scheme == "file" else uri
    is_folder = scheme == "file" or ("://" not in uri and not uri.startswith(("databricks", "uc")))
    if not is_folder or os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1"):
        return
    raise TrackingError(
        f"{URI}={uri} names a folder of files, which MLflow no longer supports as a store. To keep the runs in it, "
        f"convert it with `mlflow migrate-filestore --source {folder} --target sqlite:///mlflow.db`, and set "
        f"{URI}=sqlite:///mlflow.db. To use the project's own store, unset {URI}."
    )
