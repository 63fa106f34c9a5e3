"""Converts the keys that several tools share: those for the rows and their splits."""

from recipe.migrate.migration import Migration, shown

BUILDERS = {"json", "csv", "parquet", "text", "arrow"}  # values of `path` that name a file format
OTHER_DATASETS = (
    "Only one dataset is used. If the datasets have the same format, put their files into one folder. Otherwise, "
    "convert their rows to one format first"
)


def held_out(migration: Migration, key: str) -> None:
    """Convert the key that sets the share of rows to hold out.

    A value that is not between 0 and 1 stays in the config, and is reported later.
    """
    if 0 < (migration.config.get(key) or 0) < 1:
        migration.take(key, "sequence.validation_fraction")
        migration.differ(key, "whole prompts are held out, so that no prompt is in both parts")


def replaced_by_data(migration: Migration, *keys: str) -> None:
    """Report that the rows named with --data replace the values of these keys."""
    for key in keys:
        if (value := migration.pop(key)) is not None:
            migration.differ(key, f"{shown(value)} is replaced by --data")


def split(migration: Migration, value: object, where: str) -> None:
    """Set the train split. A slice, such as `train[:5%]`, is replaced by the whole split."""
    name, bracket, part = str(value).partition("[")
    migration.put("data.train_split", name, f"{where}: {value}")
    if bracket:
        migration.differ(where, f"the whole split is used, not only the part [{part}")
