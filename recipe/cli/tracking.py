"""Defines the commands that concern MLflow and are not stages."""

import click

from recipe.cli import context
from recipe.cli.context import HERE


@click.command()
@click.option("--server", default="http://127.0.0.1:5000", show_default=True, help="URL of the MLflow UI.")
def link(server: str) -> None:
    """Print the MLflow URL of this recipe's last registered run.

    If this recipe has no registered run, prints the URL of the experiment list. If the repository was moved, this
    command also corrects the artifact paths in the repository's MLflow database.

    \b
        make mlflow-ui     # run in the repository root; also prints this URL
        recipe link --server http://gpu-host:5000
    """
    from recipe.cli.run_metadata import read_notes
    from recipe.tracking.address import run_address
    from recipe.tracking.moved_store import correct_paths
    from recipe.tracking.settings import default_store

    correct_paths(default_store(HERE))
    run, server = read_notes(context.paths().local).get("register", {}), server.rstrip("/")
    known = {"experiment_id", "run_id"} <= run.keys()
    click.echo(run_address(server, run["experiment_id"], run["run_id"]) if known else f"{server}/#/experiments")
