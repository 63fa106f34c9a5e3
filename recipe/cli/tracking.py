"""Defines the commands that concern MLflow and are not stages: `recipe link`, `recipe sync` and `recipe compare`."""

import os

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


@click.command()
@click.argument("new")
@click.argument("old", required=False)
def compare(new: str, old: str | None) -> None:
    """Compare the registered version NEW with the version OLD, row by row.

    The default OLD is the champion of the same model. Prints which version is better on the validation rows and on the
    general rows (data.general), by how much, and in which categories, with 95% intervals. The report with charts is in
    reports/compare/. Two versions can be compared if they were evaluated with the same rows and the same tokenizer.

    \b
        recipe compare models:/recipe-demo/2
        recipe compare models:/recipe-demo/2 models:/recipe-demo/1
    """
    from recipe.cli.compare import compare as compare_versions

    text, path = compare_versions(new, old)
    click.echo(f"{text}\n\nreport: {os.path.relpath(path)}")


COMMANDS = [link, sync, compare]
