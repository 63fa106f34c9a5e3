"""Runs the package in this folder, even if a different copy is installed.

    python -P recipe/__main__.py STAGE

dvc.yaml runs every stage with this command. A stage therefore always runs the copy of the package whose files DVC
hashes, whether in a virtual environment, a clone, the container or `dvc exp run --temp`. With -P, Python adds neither
this folder nor the working directory to its module search path, so a user's `datasets.py` does not shadow the library
with the same name.
"""

import importlib.util
import sys
from pathlib import Path


def load_package(folder: Path) -> None:
    """Load the package in `folder` as `recipe`, so that later imports of `recipe` use it."""
    spec = importlib.util.spec_from_file_location(
        "recipe", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec and spec.loader
    package = importlib.util.module_from_spec(spec)
    sys.modules["recipe"] = package
    spec.loader.exec_module(package)


if __name__ == "__main__":
    load_package(Path(__file__).resolve().parent)
    from recipe.cli.commands import main

    main(prog_name="recipe")
