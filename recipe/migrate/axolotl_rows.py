"""Converts the `datasets` and the chat template in an axolotl configuration file."""

from typing import Any

from recipe.core.errors import ParamsError
from recipe.migrate import rows
from recipe.migrate.migration import Migration, shown
from recipe.text.messages import MARKS, ROLE_NAMES, ROLES

ALPACA_FIELDS = {"field_instruction": "instruction", "field_input": "input", "field_output": "output"}


def first_dataset(migration: Migration) -> None:
    """Set the rows, the template and the columns from the first dataset, and report the other datasets."""
    datasets = migration.pop("datasets", [])
    if not datasets or not datasets[0].get("path"):
        raise ParamsError("the file has no datasets with a path. Name the rows with --data.")
    first = {key: value for key, value in datasets[0].items() if value is not None}
    for number, other in enumerate(datasets[1:], 2):
        migration.leave_out(f"datasets[{number}]", other, rows.OTHER_DATASETS)
    files, path = first.pop("data_files", None), str(first.pop("path"))
    if isinstance(files, list) and len(files) == 1:
        files = files[0]
    if isinstance(files, str) and path in rows.BUILDERS:
        migration.data = files
        migration.taken.append(f"datasets[1].data_files: {files} -> data.source")
    else:
        migration.data = path
        migration.taken.append(f"datasets[1].path: {path} -> data.source, data.id")
        if files:
            migration.miss("datasets[1].data_files", files, "Name the file with --data")
    for key, target in (("name", "data.subset"), ("revision", "data.revision")):
        if key in first:
            migration.put(target, str(first.pop(key)), f"datasets[1].{key}: {shown(datasets[0][key])}")
    if "split" in first:
        rows.split(migration, first.pop("split"), "datasets[1].split")
    if (file_type := first.pop("ds_type", None)) is not None:
        migration.taken.append(f"datasets[1].ds_type: {file_type} -> the format is recognized by the file's name")
    _template(migration, first)
    for key, value in first.items():
        migration.miss(f"datasets[1].{key}", value)


def _template(migration: Migration, first: dict[str, Any]) -> None:
    """Set the template and its columns from a dataset's `type`, and remove the used keys from `first`."""
    kind = first.pop("type", None)
    source = f"datasets[1].type: {shown(kind)}"
    if isinstance(kind, dict):
        _set_columns(migration, "alpaca", {
            field: str(kind.get(key) or field) for key, field in ALPACA_FIELDS.items()
        }, source)  # fmt: skip
        for key in kind.keys() - ALPACA_FIELDS.keys():
            migration.miss(f"datasets[1].type.{key}", kind[key], "The prompts are Alpaca's")
    elif kind in ("alpaca", "alpaca:chat", "alpaca:phi"):
        _set_columns(migration, "alpaca", {field: field for field in ALPACA_FIELDS.values()}, source)
        if kind != "alpaca":
            migration.differ("datasets[1].type", f"{kind} has prompts of its own. The prompts are Alpaca's")
    elif kind in ("chat_template", "sharegpt") or str(kind).startswith("sharegpt."):
        default = "messages" if kind == "chat_template" else "conversations"
        columns = {"messages": str(first.pop("field_messages", default))}
        for name in ("system", "tools"):  # in axolotl, these names are also the defaults of type: chat_template
            column = first.pop(f"field_{name}", name if kind == "chat_template" else None)
            columns |= {} if column is None else {name: str(column)}
        _set_columns(migration, "chat", columns, source)
        _chat(migration, first)
    elif kind == "completion":
        _set_columns(migration, "text", {"text": str(first.pop("field", "text"))}, source)
        migration.differ(
            "datasets[1].type", "axolotl splits a long text into several rows. sequence.on_overlong decides here"
        )
    elif kind == "pretrain":
        raise ParamsError("datasets[1].type: pretrain is not supervised fine-tuning, so the file can't be migrated.")
    else:
        migration.miss("datasets[1].type", kind, "Set sequence.template and sequence.columns")
    _chat_template(migration, first)


def _set_columns(migration: Migration, template: str, columns: dict[str, str], source: str) -> None:
    migration.put("sequence.template", template, source)
    migration.put("sequence.columns", columns, source)


def _chat(migration: Migration, first: dict[str, Any]) -> None:
    """Convert the dataset keys that describe messages. Unrecognized keys and role names are reported."""
    first.pop("conversation", None)
    mapping = {**(first.pop("message_property_mappings", None) or {})}
    for key, name in (("message_field_role", "role"), ("message_field_content", "content")):
        if key in first:
            mapping[name] = first.pop(key)
    known = {"role": {"role", "from"}, "content": {"content", "value"}}
    for name, column in mapping.items():
        where = f"datasets[1].message_property_mappings.{name}"
        if column in known.get(name, {name}):
            migration.taken.append(f"{where}: {column} -> recognized")
        else:
            migration.miss(where, column, f"Rename the key {column} in the rows to {name}")
    for role, names in (first.pop("roles", None) or {}).items():
        for name in names if isinstance(names, list) else [names]:
            where = f"datasets[1].roles.{role}"
            if ROLE_NAMES.get(str(name), name) == ROLE_NAMES.get(str(role), role) and role in (*ROLES, *ROLE_NAMES):
                migration.taken.append(f"{where}: {name} -> recognized")
            else:
                migration.miss(where, name, f"Rename the role {name} in the rows to {role}")
    if first.get("message_field_training") in MARKS:
        migration.taken.append(
            f"datasets[1].message_field_training: {first.pop('message_field_training')} -> recognized"
        )
    trained = first.pop("roles_to_train", None)
    if trained is not None and {ROLE_NAMES.get(str(role), role) for role in trained} != {"assistant"}:
        migration.differ(
            "datasets[1].roles_to_train", f"{shown(trained)}: only the assistant's messages are in the loss"
        )
    elif trained is not None:
        migration.taken.append(
            f"datasets[1].roles_to_train: {shown(trained)} -> the assistant's messages are in the loss"
        )
    ends = first.pop("train_on_eos", None)
    if ends == "turn":
        migration.taken.append("datasets[1].train_on_eos: turn -> each message in the loss includes its end token")
    elif ends is not None:
        migration.differ("datasets[1].train_on_eos", f"{ends}: each message in the loss includes its end token")


def _chat_template(migration: Migration, first: dict[str, Any]) -> None:
    """Convert the dataset's chat template, or the file's chat template if the dataset has none."""
    outer, outer_text = migration.pop("chat_template"), migration.pop("chat_template_jinja")
    name = str(first.pop("chat_template", None) or outer or "tokenizer_default")
    text = first.pop("chat_template_jinja", None) or outer_text
    if migration.settings.get("sequence.template") != "chat":
        for key, value in (("chat_template", outer), ("chat_template_jinja", outer_text)):
            if value is not None:
                migration.differ(key, f"{shown(value)} is not used, because the template is not `chat`")
    elif text:
        migration.put("sequence.chat_template", str(text), "chat_template_jinja")
    elif name == "chatml":
        migration.put("sequence.chat_template", "chatml", "chat_template: chatml")
    else:
        migration.put("sequence.chat_template", None, f"chat_template: {name}")
        if name.startswith("tokenizer_default_fallback_"):
            fallback = name.removeprefix("tokenizer_default_fallback_")
            migration.differ("chat_template", f"if the tokenizer has no template, there is no fallback to {fallback}")
        elif name != "tokenizer_default":
            migration.differ("chat_template", f"instead of axolotl's {name}, the tokenizer's own template is used")
