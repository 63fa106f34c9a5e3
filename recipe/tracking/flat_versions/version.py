"""Runs a model version that was registered before the package was split into folders.

The version's own code runs in a separate process.
"""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any


class FlatVersion:
    """A version that was registered before the package was split into folders.

    `folder` contains MLmodel, code/ and served.py.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.worker: Any = None

    def __len__(self) -> int:
        """Support `len(tokenizer)`, which the file that MLflow runs calls. The value is not used."""
        return 0

    def start(self) -> None:
        """Start the process that loads the version. Raises ValueError with the error message if loading fails."""
        from recipe.tracking.model_process import FLAT, Worker

        self.worker = Worker(FLAT, str(self.folder))


def load_flat_version(folder: Path) -> Any:
    """Load a version with the code stored in it, and return a function that generates answers for rows.

    This function runs in the version's process.
    """
    import yaml

    flavor = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))["flavors"]["python_function"]
    sys.path.insert(0, str(folder / flavor["code"]))
    model = runpy.run_path(str(folder / Path(flavor["model_code_path"]).name))["AdapterModel"]()
    artifacts = {name: str(folder / artifact["path"]) for name, artifact in flavor["artifacts"].items()}
    model.load_context(SimpleNamespace(artifacts=artifacts))
    return lambda rows, max_new_tokens: model.predict(None, rows, {"max_new_tokens": max_new_tokens})
