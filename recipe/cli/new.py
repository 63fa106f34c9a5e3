"""Implements `recipe new`, which creates a recipe folder with its own params.yaml and dvc.yaml.

With --data, `recipe new` sets the template and the columns that fit the first rows of the data (see detect.py).
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from recipe.cli.context import sections
from recipe.cli.detect import NUM_ROWS, Detected, detect, first_rows, has_preferences
from recipe.core.config import dump_yaml, load_yaml, read_params
from recipe.core.errors import DataError, ParamsError
from recipe.core.hub_cache import HUB
from recipe.core.io import new_folder, write_text
from recipe.core.paths import repository
from recipe.fetch.splits import local_split_files
from recipe.fetch.tokenizer_files import check_files
from recipe.text.rows import NOT_UTF8, describe_type, is_missing, is_utf8, safe
from recipe.text.templates import TEMPLATES

HUB_FILE = (
    "`source: hub` in params.yaml: DVC wants a file behind every dependency, and finds this one. It never changes; "
    "what comes from the Hub is pinned by `revision`.\n"
)
PREFERENCES = (
    "the rows of {data} contain preferences (chosen and rejected), as for DPO, but only supervised fine-tuning is "
    "available. To train on the chosen answers, use a file with only the prompts and these answers, in a format of "
    "docs/data.md."
)


def source_of(source: str) -> str:
    """Return the value for a `source` key in params.yaml: an existing path unchanged, or `hub` for a Hub name.

    Raises ParamsError if `source` is neither an existing path nor a Hub name.
    """
    if Path(source).exists():
        return source
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        return HUB
    raise ParamsError(f"{source} does not exist and is not a Hub name (owner/name).")


def new_recipe(
    folder: Path, name: str, data: str | None, model: str | None, settings: dict[str, Any] | None = None
) -> tuple[Path, list[str]]:
    """Create the recipe folder presets/NAME from the recipe in `folder`.

    Return the new folder, and messages for the terminal (for example, which template was chosen). `data` and `model`
    are paths or Hub names that replace the sources in params.yaml. Relative paths are adapted to the new folder.
    `settings` maps keys such as `lora.r` to values that replace those in params.yaml. A template in `settings` is used
    instead of the one that fits the rows.

    Raises ParamsError if the name is taken or invalid, if a source is neither a path nor a Hub name, if the model path
    is not a folder that contains config.json, or if a required section is missing from params.yaml. Raises DataError if
    the rows can't be read or have no train split.
    """
    root = repository(folder)
    new = root / "presets" / name
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name):
        raise ParamsError(
            f"{name!r} is not a valid recipe name. Use letters, digits, '_' and '-', and start with a letter or digit."
        )
    if new.exists():
        raise ParamsError(f"{new} already exists. Choose a different name.")
    if model is not None and source_of(model) != HUB and not (Path(model) / "config.json").is_file():
        raise ParamsError(
            f"{model} is not a base model, because it has no config.json. Choose a folder in the transformers format."
        )
    params = load_yaml(folder / "params.yaml")
    missing = [section for section in ("data", "model", "registry") if section not in params]
    if missing:
        raise ParamsError(f"{folder / 'params.yaml'} lacks required sections: {', '.join(missing)}.")
    for section, option in (("data", data), ("model", model)):
        if option is not None:
            source = source_of(option)
            params[section]["source"] = source if source == HUB else os.path.relpath(option, new)
        elif params[section]["source"] != HUB:
            params[section]["source"] = os.path.relpath(folder / params[section]["source"], new)
    if data is not None:
        params["data"].update(general=None, general_sha256=None)
    elif params["data"]["general"] is not None:
        params["data"]["general"] = os.path.relpath(folder / params["data"]["general"], new)
    if data is not None and source_of(data) == HUB:
        params["data"].update(
            id=data, revision=None, subset=None, sha256=None, train_split="train", validation_split=None
        )
    elif data is not None:
        _describe(params, Path(data))
    notes = []
    if model is not None:
        on_hub = source_of(model) == HUB
        params["model"].update(id=model if on_hub else Path(model).resolve().name, revision=None)
    settings = settings or {}
    if "sequence.template" not in settings and data is not None:
        notes += (
            _set_template(params["sequence"], data, params["data"]) if source_of(data) != HUB
            else [f"the rows of {data} were not read. Check sequence.template and sequence.columns in params.yaml."]
        )  # fmt: skip
    for key, value in settings.items():
        section, _, setting = key.partition(".")
        params[section][setting] = value
    if data is not None or model is not None:
        notes += _set_chat_template(params["sequence"], _base_folder(params, new))
    params["registry"].update(name=name, experiment=name)
    params.yaml_set_start_comment(
        f"Recipe {name}. To run it, use `dvc repro` in this folder. To check this file, use `recipe params`."
    )
    with new_folder(new) as target:
        write_text(target / "params.yaml", dump_yaml(params))
        if settings:
            read_params(target / "params.yaml", sections())
        write_text(target / "dvc.yaml", pipeline_of(root))
        write_hub_file(target, params)
    return new, notes


def pipeline_of(root: Path) -> str:
    """Return the text of dvc.yaml for a folder in presets/: the root's dvc.yaml with `root` set to `../..`."""
    text = (root / "dvc.yaml").read_text(encoding="utf-8")
    assert text.count("\n  - root: .\n") == 1
    return text.replace("\n  - root: .\n", "\n  - root: ../..\n")


def write_hub_file(folder: Path, params: Any) -> None:
    """Write the `hub` file if a source in `params` is `hub` and the file does not exist.

    DVC treats the value of `source` as a path, so `source: hub` requires a file named `hub`. The content of this file
    never changes.
    """
    if HUB in (params["data"]["source"], params["model"]["source"]) and not (folder / HUB).exists():
        write_text(folder / HUB, HUB_FILE)


def _describe(params: Any, data: Path) -> None:
    """Adapt the `data` section to a local source.

    A folder can contain several splits. A single file becomes the train split. Raises DataError if a folder has no
    train split.
    """
    params["data"].update(id=None, revision=None, subset=None, sha256=None)
    if not data.is_dir():
        params["data"].update(train_split="train", validation_split=None)
        return
    splits = sorted({re.split(r"[-.]", file.name)[0] for file in data.iterdir() if file.is_file()})
    if "train" not in splits:
        raise DataError(
            f"{data} has no train split. Splits found: {', '.join(splits) or 'none'}. "
            "Rename the file of training rows, for example to train.jsonl."
        )
    validation = next((name for name in ("validation", "valid", "dev", "test") if name in splits), None)
    params["data"].update(train_split="train", validation_split=validation)


def _base_folder(params: Any, new: Path) -> Path | None:
    """Return the folder of a local base model, or None if the model is on the Hub."""
    source = params["model"]["source"]
    # `new` does not exist yet, so the operating system could not resolve `..` in a path relative to `new`.
    return None if source == HUB else Path(os.path.normpath(new / source))


def _set_template(sequence: Any, data: str, splits: Any) -> list[str]:
    """Set the template and the columns that fit the rows. Return messages for the terminal.

    Raises DataError if a file can't be read.
    """
    files = local_split_files(Path.cwd(), data, {"train": splits["train_split"]})["train"]
    rows, malformed = first_rows(files)
    notes = [f"{malformed} of the first {len(rows) + malformed:,} rows of {data} are malformed."] if malformed else []
    if has_preferences(rows):
        notes.append(PREFERENCES.format(data=data))
    if any(isinstance(value, str) and not is_utf8(value) for row in rows for value in row.values()):
        notes.append(f"the text of {data} {NOT_UTF8}.")
    detected = detect(rows)
    if detected is None:
        first = {name: value for row in reversed(rows) for name, value in row.items() if not is_missing(value)}
        columns = ", ".join(
            f"{safe(name)} ({describe_type(value)}, not text)" if isinstance(value, int | float) else safe(name)
            for name, value in first.items()
        )
        columns = columns or "none"
        return [
            *notes,
            f"no template fits the columns of {data}: {columns}. Before you run the recipe, set sequence.template and "
            "sequence.columns in params.yaml, which still have the values of the current recipe. docs/data.md "
            "describes the formats.",
        ]
    # Keep the current template if it has the same required columns and can read all detected columns. For example,
    # alpaca_chat can read the same columns as alpaca.
    current = TEMPLATES[sequence["template"]]
    if current.REQUIRED == TEMPLATES[detected.template].REQUIRED and set(detected.columns) <= {
        *current.REQUIRED, *current.OPTIONAL, "category",
    }:  # fmt: skip
        detected.template = sequence["template"]
    sequence["template"] = detected.template
    sequence["columns"].clear()
    sequence["columns"].update(detected.columns)
    notes.append(_describe_choice(data, len(rows), detected))
    return notes


def _set_chat_template(sequence: Any, base: Path | None) -> list[str]:
    """Adapt sequence.chat_template to the template and the base model. Return messages for the terminal.

    The value is set to null if the template does not use a chat template. It is set to `plain` if the template uses a
    chat template, but the value is null and the local base model has no chat template.
    """
    if base is not None:
        try:
            check_files(base)
        except DataError as error:
            return [f"{error} `recipe fetch model` would fail."]
    if not TEMPLATES[sequence["template"]].USES_CHAT_TEMPLATE:
        sequence["chat_template"] = None
    elif sequence["chat_template"] is None and base is not None and not _has_chat_template(base):
        sequence["chat_template"] = "plain"
        return ["the base model's tokenizer has no chat template, so sequence.chat_template is set to plain."]
    return []


def _describe_choice(data: str, num_rows: int, detected: Detected) -> str:
    columns = ", ".join(name if name == column else f"{name}: {column}" for name, column in detected.columns.items())
    unused = f" Columns that are not used: {', '.join(detected.unused)}." if detected.unused else ""
    if keys := ", ".join(detected.message_keys):
        unused += f" Other keys of the messages, which not every chat template writes: {keys}."
    first = "the first " if num_rows >= NUM_ROWS else ""
    fits = f"They fit the template `{detected.template}` ({columns})."
    return f"{first}{num_rows:,} rows of {data} were read. {fits}{unused}"


def _has_chat_template(base: Path) -> bool:
    """Return whether the tokenizer of a base model has a chat template in any place that transformers checks."""
    config = base / "tokenizer_config.json"
    in_config = config.is_file() and bool(json.loads(config.read_text(encoding="utf-8")).get("chat_template"))
    return in_config or any(base.glob("chat_template.*")) or (base / "additional_chat_templates").is_dir()
