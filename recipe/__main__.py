"""Runs the package in this folder, even if a different copy is installed: `python -P recipe/__main__.py STAGE`.

dvc.yaml runs the stages this way, so the code that runs is always the code that DVC hashed: in any environment, in a
clone, in the container and in `dvc exp run --temp`. With -P, Python adds neither this folder nor the working directory
to its search path, so a user's `datasets.py` does not shadow a library.
"""

import importlib.util
import sys
from pathlib import Path


def load_package(folder: Path) -> None:
    """Make `import recipe` load the package in `folder`."""
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
