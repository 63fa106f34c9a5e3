"""Defines `recipe export`, which writes a trained adapter in other forms."""

from pathlib import Path

import click


@click.command()
@click.argument("version", required=False)
@click.option("--to", "form", required=True, type=click.Choice(["merged"]), help="The form to write.")
@click.option(
    "--dtype", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16"]),
    help="Precision of the merged weights.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write. The default is exports/FORM.")
@click.option(
    "--tolerance", type=click.FloatRange(0, min_open=True),
    help="Accept this mean divergence (nats) from the adapter, instead of the usual limits.",
)  # fmt: skip
def export(version: str | None, form: str, dtype: str, out: Path | None, tolerance: float | None) -> None:
    """Export the trained adapter, and prove that the export is the trained model.

    Without VERSION, exports the adapter in this recipe folder. VERSION is a registered one, such as
    models:/recipe-demo@champion.

    merged writes a folder in transformers' layout, in which the adapter is part of the base model's weights.

    Before an export is kept, it is compared with the adapter on 32 validation rows: the token ids of the prompts, the
    logits, and the greedy answers. If they differ by more than the limits, the exit code is 5 and nothing is kept. The
    comparison is in reports/export/index.html and in the MLflow run.

    \b
        recipe export --to merged
        recipe export --to merged --dtype bfloat16 --out ~/models/my-model
        recipe export models:/recipe-demo@champion --to merged
    """
    from recipe.model.processor import pin_processor

    pin_processor()
    from recipe.cli.export import export_merged

    assert form == "merged"
    export_merged(version, dtype, out, tolerance, click.echo)


COMMANDS = [export]
