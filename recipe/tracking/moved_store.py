"""Corrects the artifact paths in the default MLflow store after the repository has been moved or mounted elsewhere.

MLflow stores the absolute path of every artifact folder. Without a correction, old versions would not load after a
move, and new runs would write to the old path.
"""

import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

ARTIFACTS = "mlflow/artifacts"  # the path relative to the repository root, the same in every repository
# The database columns in which MLflow 3.17 stores the URIs of artifact folders.
COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)
FIND = "SELECT artifact_location FROM experiments WHERE artifact_location LIKE ? AND artifact_location != ?"
WAIT_SECONDS = 10  # how long to wait if another process is writing to the database


def correct_paths(store: Path) -> bool:
    """Replace the repository's former path in the store's database with the current path, and print a note.

    A path is replaced only if its folder no longer exists. Before any change, the database is copied to
    mlflow.db.before-move. If the database can't be changed, the note gives the reason. Returns whether any paths were
    replaced.
    """
    database, new = store / "mlflow.db", store / "artifacts"
    if not database.is_file() or not new.is_dir():
        return False
    try:
        with closing(sqlite3.connect(database, timeout=WAIT_SECONDS)) as connection, connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables.issuperset(table for table, _ in COLUMNS):
                return False
            found = {old for (old,) in connection.execute(FIND, [f"file://%/{ARTIFACTS}", new.as_uri()])}
            moved = sorted(old for old in found if not Path(url2pathname(urlsplit(old).path)).exists())
            if not moved:
                return False
            shutil.copy2(database, database.with_name("mlflow.db.before-move"))
            for old in moved:
                for table, column in COLUMNS:
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                        f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                        [new.as_uri(), len(old) + 1, old, len(old) + 1, f"{old}/"],
                    )
    except (sqlite3.Error, OSError) as error:
        _note(f"the paths in {database} were not checked after a possible move of the repository ({error}).")
        return False
    _note(f"the repository was moved. In {database}, the paths of artifacts now begin with {new}.")
    return True


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)  # not stdout, because `recipe link` prints a URL there
