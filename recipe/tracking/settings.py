"""Selects the MLflow store, and prevents other programs' settings from changing what is logged or where.

The package calls `prepare_environment` before MLflow is imported, because MLflow then reads some of the variables.
"""

import os
import re
from pathlib import Path

from recipe.core.errors import TrackingError
from recipe.core.format import without_credentials
from recipe.core.paths import home

URI = "MLFLOW_TRACKING_URI"
# The prefixes of the variables that say how to reach the server and its artifacts. All other MLflow variables are
# removed, because another program may have set them. For example, MLFLOW_RUN_ID or MLFLOW_EXPERIMENT_NAME would
# redirect the run.
KEPT = (
    "MLFLOW_TRACKING_", "MLFLOW_HTTP_", "MLFLOW_ALLOW_", "MLFLOW_WORKSPACE", "MLFLOW_DISABLE_TELEMETRY",
    "MLFLOW_S3_", "MLFLOW_GCS_", "MLFLOW_BOTO_", "MLFLOW_KERBEROS_", "MLFLOW_PYARROW_", "MLFLOW_MYSQL_",
    "MLFLOW_SQLALCHEMYSTORE_", "MLFLOW_DATABRICKS_", "MLFLOW_ARTIFACT_", "MLFLOW_MULTIPART_", "MLFLOW_DOWNLOAD_",
    "MLFLOW_PRESIGNED_", "MLFLOW_ENABLE_MULTIPART_", "MLFLOW_ENABLE_PROXY_", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR",
)  # fmt: skip


def prepare_environment() -> list[str]:
    """Remove all MLflow variables except KEPT, and set the variables that the project needs.

    Returns the names of the removed variables, except those that MLflow sets for its child processes. Telemetry and the
    unpickling of artifacts are disabled. By default, MLflow then gives up on an unreachable server after seconds, not
    minutes.
    """
    removed = [name for name in os.environ if name.lstrip("_").startswith("MLFLOW_") and not name.startswith(KEPT)]
    for name in removed:
        del os.environ[name]
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    # MLflow would print the URL of each run with the user name and the password that MLFLOW_TRACKING_URI contains.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ["MLFLOW_UV_AUTO_DETECT"] = "false"  # otherwise, a version may include another project's lock file
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    return sorted(name for name in removed if not name.startswith("_"))


def default_store(folder: Path) -> Path:
    """Return the folder of the store that is used if MLFLOW_TRACKING_URI is not set: mlflow/ in the repository."""
    return home(folder) / "mlflow"


def database_uri(store: Path) -> str:
    """Return the URI of the database in a store's folder."""
    return f"sqlite:///{store / 'mlflow.db'}"


def check_uri(uri: str) -> None:
    """Raise TrackingError if the URI points to a folder of files, which MLflow 3 no longer supports as a store."""
    is_folder = uri.startswith("file:") or ("://" not in uri and not uri.startswith(("databricks", "uc")))
    if not is_folder or os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1"):
        return
    shown = re.sub(r"^[^/@]*:[^/]*@", "", without_credentials(uri))  # `http://` may have been forgotten
    folder = shown.removeprefix("file:").removeprefix("//")
    raise TrackingError(
        f"{URI}={shown} names a folder of files, which MLflow no longer supports as a store. To keep the runs in it, "
        f"convert it with `mlflow migrate-filestore --source {folder} --target sqlite:///mlflow.db`, and set "
        f"{URI}=sqlite:///mlflow.db. To use the project's own store, unset {URI}."
    )
