"""Implements `recipe compare`: fetches the row scores of two registered versions, and writes the report."""

import tempfile
from pathlib import Path

from recipe.cli.context import HERE
from recipe.compare.rows import compare_versions, report, text
from recipe.core.errors import ParamsError
from recipe.core.io import new_folder, write_text
from recipe.core.paths import repository
from recipe.register.promotion import ALIAS, Candidate
from recipe.report.score_tables import Names


def compare(new: str, old: str | None) -> tuple[str, Path]:
    """Compare the version `new` with the version `old`, or with the champion of the same model.

    Returns the comparison as text, and the path of the report. Raises ParamsError if both are the same version.
    """
    from recipe.tracking.versions import ADDRESS

    match = ADDRESS.fullmatch(new)
    old = old or (f"models:/{match[1]}@{ALIAS}" if match else new)
    (old_name, old_candidate), (new_name, new_candidate) = _find(old), _find(new)
    if (old_name, old_candidate.number) == (new_name, new_candidate.number):
        raise ParamsError(
            f"{new} and {old} are the same version, {new_candidate.number} of {new_name}. Name two versions, such as "
            f"models:/{new_name}/1 and models:/{new_name}/2."
        )
    same = old_name == new_name
    old_label = f"version {old_candidate.number}" if same else f"{old_name} version {old_candidate.number}"
    new_label = f"version {new_candidate.number}" if same else f"{new_name} version {new_candidate.number}"
    names = Names(old_label, new_label, old_label, f"{new_label} of {new_name}" if same else new_label)
    compared = compare_versions(old_candidate, new_candidate, names)
    html, charts = report(compared)
    place = f"{new_name}-{new_candidate.number}-and-{'' if same else f'{old_name}-'}{old_candidate.number}"
    folder = HERE / "reports" / "compare" / place
    with new_folder(folder) as target:
        write_text(target / "index.html", html)
        for name, svg in charts.items():
            write_text(target / f"{name}.svg", svg)
    return text(compared), folder / "index.html"


def _find(address: str) -> tuple[str, Candidate]:
    from recipe.tracking.server import explained
    from recipe.tracking.versions import download_row_scores, find_version

    server, version = find_version(address, repository(HERE))
    advice = "Run the command again when the server is reachable."
    with tempfile.TemporaryDirectory() as folder, explained(server, "failed", advice):
        rows = download_row_scores(server.client, str(version.run_id), Path(folder))
    return str(version.name), Candidate(str(version.version), dict(version.tags), rows)
