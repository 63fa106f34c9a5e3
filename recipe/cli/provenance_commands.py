"""Defines the commands that say where a registered version and the installed packages come from."""

import os
from pathlib import Path

import click


@click.command()
@click.argument("version")
@click.option("--public-key", type=click.Path(path_type=Path), help="Check the signature with this key, a PEM file.")
@click.option("--rebuild", is_flag=True, help="Also rebuild the commit, and compare the adapters byte for byte.")
def provenance(version: str, public_key: Path | None, rebuild: bool) -> None:
    """Trace a registered version back to its sources, and check every link.

    Prints the run, the adapter, dvc.lock, the code, params.yaml, the dataset, the base model, the lock file and the
    image. Hashes what this machine can reach: the registered files, the files of the commit, the fetched rows and the
    base model. A link is checked, not reachable here, or broken. The exit code is 1 if a link is broken.

    \b
        recipe provenance models:/recipe-demo@champion
        recipe provenance models:/recipe-demo/1 --rebuild
        recipe provenance models:/recipe-demo/1 --public-key key.pub
    """
    from recipe.cli.provenance import provenance

    if not provenance(version, public_key, click.echo, rebuild=rebuild):
        click.get_current_context().exit(1)


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
def sbom(file: Path | None) -> None:
    """Write a CycloneDX bill of materials of the installed packages to FILE, and print where it is.

    Lists each package with its version and license, and with the hashes from the lock files. The default FILE is
    sbom.cdx.json in the repository root.
    """
    from recipe.cli.provenance import sbom

    click.echo(f"bill of materials: {os.path.relpath(sbom(file))}")


COMMANDS = [provenance, sbom]
