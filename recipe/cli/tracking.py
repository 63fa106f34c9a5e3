"""Defines the commands that concern MLflow and are not stages: `recipe link` and `recipe sync`."""

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


@click.command()
@click.option("--all", "every", is_flag=True, help="Also send runs that were logged for a different server.")
def sync(every: bool) -> None:
    """Send to MLflow what it did not receive of earlier trainings.

    If MLflow is unreachable during a training, mlflow/pending/ in the repository keeps what the training logs. This
    command sends it, and prints where the runs are and what remains. The register stage does the same. Run the command
    again if it is interrupted: no value is sent twice. If MLflow is still unreachable, the exit code is 6.

    \b
        recipe sync
        MLFLOW_TRACKING_URI=http://new-host:5000 recipe sync --all    # the server was moved
    """
    from recipe.tracking.server import Server
    from recipe.tracking.sync import send_pending

    context.paths()  # raises ParamsError if this is not a recipe folder
    remaining, damaged = send_pending(Server(HERE), click.echo, every=every)
    click.echo(
        f"remaining trainings: {remaining}" if remaining else "nothing is pending: MLflow has all that was logged"
    )
    for error in damaged:
        raise error


COMMANDS = [link, sync]
