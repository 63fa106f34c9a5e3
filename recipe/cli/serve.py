"""Implements `recipe serve`: exports the adapter if needed, and serves the export."""

from collections.abc import Callable

from recipe.cli import context
from recipe.cli.context import HERE
from recipe.cli.export import exported
from recipe.core.errors import ParamsError
from recipe.core.paths import repository
from recipe.export.llama import install
from recipe.serve.engines import FORMS, find_vllm
from recipe.serve.run import Options, serve_export

Say = Callable[[str], None]


def serve(version: str | None, options: Options, dtype: str | None, say: Say) -> None:
    """Serve the adapter of this recipe folder, or a registered version, until a signal ends the command.

    Raises TrainingError if the server's answer is not the adapter's, and ParamsError for options that do not fit.
    """
    options.check()
    if options.engine == "vllm":
        find_vllm()  # before anything is exported
    if options.engine == "mlflow" and version is None:
        raise ParamsError("--engine mlflow: name a registered version, such as models:/recipe-demo@champion.")
    folder, name = exported(version, FORMS[options.engine], dtype, say)
    serve_export(
        folder, name, options, context.paths().local / "serve.log", say,
        llama=lambda: install(repository(HERE) / ".recipe", say),
        tracking_uri=_store() if options.engine == "mlflow" else "",
    )  # fmt: skip


def _store() -> str:
    from recipe.tracking.server import Server

    return Server(repository(HERE)).uri
