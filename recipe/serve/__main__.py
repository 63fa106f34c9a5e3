"""Serves an export where only vLLM's packages and this package are installed, as in vLLM's image.

python -m recipe.serve /model --engine vllm --name my-model --host 0.0.0.0
"""

import argparse
import os
import sys
from pathlib import Path

from recipe.core.errors import RecipeError
from recipe.serve.run import Options, serve_export


def main() -> int:
    """Serve the export that the command line names. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m recipe.serve", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--engine", default="vllm", choices=["vllm"])
    parser.add_argument("--name", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--parallel", type=int, default=0)
    parser.add_argument("--context", type=int, default=0)
    parser.add_argument("--log", type=Path, default=Path("/tmp/engine.log"))
    given = parser.parse_args()
    key = os.environ.get("RECIPE_API_KEY") or None
    options = Options(given.engine, given.host, given.port, key, given.parallel, given.context)
    try:
        options.check()
        serve_export(given.folder, given.name, options, given.log, lambda text: print(text, flush=True))
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
