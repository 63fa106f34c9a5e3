"""Corrects the paths of artifacts in the default MLflow store after the repository was moved or mounted elsewhere.

MLflow stores the absolute path of every artifact folder. After a move, old versions would not load, and new runs would
write to the old path.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

ARTIFACTS = "mlflow/artifacts"  # relative to the repository's root, in every repository
# The columns that contain URIs of artifact folders in MLflow 3.17's database.
COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)
FIND = "SELECT artifact_location FROM experiments WHERE artifact_location LIKE ? AND artifact_location != ?"
WAIT_SECONDS = 30  # how long to wait if another process is writing to the database


def correct_paths(store: Path) -> int:
    """Replace the repository's former path in the database of `store` by its current path.

    Returns the number of changed experiments. If there is no database yet, nothing is changed.
    """
    database, new = store / "mlflow.db", (store / "artifacts").as_uri()
    if not database.is_file():
        return 0
    with closing(sqlite3.connect(database, timeout=WAIT_SECONDS)) as connection, connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables.issuperset(table for table, _ in COLUMNS):
            return 0
        old_roots = [old for (old,) in connection.execute(FIND, [f"file://%/{ARTIFACTS}", new])]
        for old in set(old_roots):
            for table, column in COLUMNS:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    [new, len(old) + 1, old, len(old) + 1, f"{old}/"],
                )
        return len(old_roots)
