"""Generated bad files: each is accepted, or rejected with a message that names the file and the place."""

import json
import re
import shutil

import pytest
from bad_input import as_jsonl, changed_bytes, changed_values, row_files
from conftest import ROOT, alpaca, no_progress, paths_in, toy_rows, write_jsonl
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from recipe.analyze.report import format_row
from recipe.analyze.scan import Columns, as_text, read_all
from recipe.cli.context import sections
from recipe.cli.detect import detect, first_rows
from recipe.core.adapter import CONFIG
from recipe.core.config import read_params
from recipe.core.errors import DataError, ParamsError
from recipe.fetch.params import ModelParams
from recipe.fetch.stage import fetch_model
from recipe.model.load import load_trained
from recipe.prepare.stage import prepare
from recipe.prepare.tokenized_rows import tokenize_rows
from recipe.text.chat_templates import ChatTemplate
from recipe.text.templates import make_template
from recipe.tokens.tokenizer import load_tokenizer

# Without shrinking, a failure is reported in seconds.
MANY = settings(max_examples=1000, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
PARAMS = YAML(typ="safe").load((ROOT / "params.yaml").read_text())


def params_text(values):
    """The values as YAML: one `key: JSON` per line."""
    if not isinstance(values, dict):
        return json.dumps(values, ensure_ascii=False)
    lines = []
    for name, section in values.items():
        if not isinstance(section, dict):
            lines.append(f"{name}: {json.dumps(section, ensure_ascii=False)}")
            continue
        lines += [f"{name}:", *(f"  {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in section.items())]
    return "\n".join(lines) + "\n"


PARAMS_BYTES = params_text(PARAMS).encode()
BAD_PARAMS = st.one_of(
    changed_values(PARAMS).map(lambda values: params_text(values).encode("utf-8", "surrogatepass")),
    changed_bytes(PARAMS_BYTES),
    st.binary(max_size=60),
)


def outcome_of_params(path):
    try:
        params = read_params(path, sections())
        params["train"].micro_batch_size(params["sequence"].max_length)
    except ParamsError as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("bad")


def check_message(message, path):
    """The message names the file and has no unprintable parts of its own; long values are shortened."""
    message.encode()  # the terminal can show it
    assert path.name in message, message[:300]
    assert len(message) < 20_000, len(message)


@MANY
@given(data=BAD_PARAMS)
def test_bad_params_give_one_message_with_the_line_or_the_key(place, data):
    path = place / "params.yaml"
    path.write_bytes(data)
    message = outcome_of_params(path)
    if message is not None:
        check_message(message, path)
        assert re.search(r"line \d|column \d|offset \d|: expected a mapping|section is missing|not valid YAML", message)


ROWS = [alpaca("Add 1 and 2.", "3"), alpaca('Say it, "twice".', "it it", "it"), alpaca("Name\na colour.", "red")]
CHATS = [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], "system": "Be kind"},
    {"messages": [{"from": "human", "value": "1"}, {"from": "gpt", "value": "2", "weight": 1}], "tools": None},
]


@pytest.fixture(scope="module")
def tokenizer(fetched_base):
    return load_tokenizer(fetched_base / "tokenizer")


def outcome_of_rows(path, valid, params, tokenizer):
    """Read a file as the commands do: prepare, analyze and show, and `recipe new --data`.

    Returns the messages of those that reject it.
    """
    chat = ChatTemplate(tokenizer, params.chat_template) if params.template == "chat" else None
    template = make_template(params.template, params.columns, chat)
    files = {"train": {path.name: path}, "validation": {valid.name: valid}}
    commands = [
        lambda: tokenize_rows(params, files, tokenizer, template, chat, no_progress),
        lambda: read_columns(path),
        lambda: detect(first_rows([path])[0]),
    ]
    messages = []
    for command in commands:
        try:
            command()
        except DataError as error:
            messages.append(str(error))
    return messages


def read_columns(path):
    columns = Columns()
    for row in read_all(path.parent, [{"name": path.name, "split": "train"}]):
        columns.add(row.values)
        format_row(as_text(row.values)).encode()
    return columns.summary()


# A row, a column, or one of the problems that concern a whole file.
PLACE = re.compile(r"(line|row) \d|no row of \S+ has that column")
WHOLE_FILE = re.compile(r"^train\.\w+(: not a readable Parquet file| is | contains | has no header| seems to have)")


def check_rows(message, path):
    if message.startswith(
        ("the train split has no valid rows", "all rows of a split are longer")
    ):  # the rows were dropped, as params.yaml specifies
        return
    check_message(message, path)
    assert PLACE.search(message) or WHOLE_FILE.search(message), message[:300]


VALIDATION = {
    "alpaca": [alpaca("Held out.", "yes")],
    "chat": [{"messages": [{"role": "user", "content": "Held"}, {"role": "assistant", "content": "out"}]}],
}
KINDS = {
    "alpaca": (ROWS, {}),
    "chat": (CHATS, {"chat_template": "plain", "columns": {name: name for name in ("messages", "system", "tools")}}),
}


@MANY
@given(
    kind_and_file=st.sampled_from(list(KINDS)).flatmap(
        lambda kind: st.tuples(st.just(kind), row_files(KINDS[kind][0]))
    ),
    drop=st.booleans(),
)
def test_bad_rows_give_one_message_with_the_line_or_the_row(place, tokenizer, sequence_params, kind_and_file, drop):
    kind, (suffix, data) = kind_and_file
    path, valid = place / f"train{suffix}", place / "validation.jsonl"
    path.write_bytes(data)
    valid.write_bytes(as_jsonl(VALIDATION[kind]))
    params = sequence_params(template=kind, on_bad_row="drop" if drop else "error", **KINDS[kind][1])
    for message in outcome_of_rows(path, valid, params, tokenizer):
        check_rows(message, path)


DEEP = b"[" * 100_000
LONG = 50_000_000


@pytest.mark.parametrize(
    ("name", "data", "part"),
    [
        ("train.jsonl", b'{"instruction": "a", "output": "b"}\n{"instruction": ' + DEEP, "line 2"),
        ("train.json", b'[{"instruction": "a", "output": "b"},\n{"instruction": ' + DEEP, "line 2"),
        ("train.csv", b"instruction,output\na,b\n" + DEEP, "line 3"),
        ("train.jsonl", b'{"instruction": "a", "output": "b"}\n' + b"x" * LONG + b"\n", "line 2"),
        ("train.json", b'[{"instruction": "a", "output": "b"},\n"' + b"x" * LONG + b'"]', "line 2"),
        ("train.csv", b"instruction,output\na,b\n" + b"x" * LONG, "line 3"),
    ],
    ids=["deep.jsonl", "deep.json", "deep.csv", "long.jsonl", "long.json", "long.csv"],
)
def test_a_deeply_nested_row_and_a_line_of_50_mb_are_named(tmp_path, tokenizer, sequence_params, name, data, part):
    (tmp_path / name).write_bytes(data)
    valid = write_jsonl(tmp_path / "validation.jsonl", VALIDATION["alpaca"])
    messages = outcome_of_rows(tmp_path / name, valid, sequence_params(), tokenizer)
    assert f"{name}, {part}" in messages[0] and len(messages[0]) < 1000, messages[0][:500]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("data:\n  source: " + "[" * 100_000, "line 2: not readable YAML: the values are nested too deeply"),
        ("data:\n  source: " + "x" * LONG, "params.yaml is too large (50,000,016 bytes"),
        ("data:\n  source: !!int x\n", "line 2: not readable YAML: invalid literal for int"),
        ("data:\n  source: 2026-99-99\n", "line 2: not readable YAML: month must be in 1..12"),
        ("data: &a\n  source: *a\n", "line 1"),
        ("data: &a {x: [*a]}\n", "line 1"),
        ("null: 3\n", "line 1, None: no such section"),
        ("data: &a {source: 3}\nlora:\n  <<: *a\n", "lora.source: no such key"),
    ],
    ids=["deep", "long", "int", "date", "alias", "alias in a list", "null", "merge"],
)  # fmt: skip
def test_params_that_yaml_can_not_represent_give_one_message(tmp_path, text, part):
    (tmp_path / "params.yaml").write_text(text)
    message = outcome_of_params(tmp_path / "params.yaml")
    assert part in message and len(message) < 20_000


def test_bad_rows_leave_the_outputs_unchanged(prepared, sequence_params, fetched_base, tmp_path):
    folder = prepared(toy_rows(20))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    file = next((tmp_path / "raw").glob("train.jsonl"))
    file.write_bytes(file.read_bytes() + b'{"instruction": 3}\n')
    with pytest.raises(DataError, match=r"train\.jsonl, line 21"):
        prepare(sequence_params(), paths_in(tmp_path, base=fetched_base), no_progress)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


MODEL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
NOT_OBJECTS = (
    b"",
    b"[]",
    b"3",
    b"null",
    b'""',
    DEEP,
    b'{"a":' * 5000,
    b'{"quantization_config": 3}',
    b'{"auto_map": 3}',
)


def outcome_of_model(folder, out):
    try:
        fetch_model(ModelParams(source=str(folder), id="tiny", revision=None, trust_remote_code=False), out)
    except (DataError, ParamsError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", MODEL_FILES)
def test_bad_model_files_give_one_message_with_the_file_or_the_model(tiny_base, tmp_path, name):
    """The message contains the path of the file or of its folder, or the model's name."""
    folder, out = tmp_path / "model", paths_in(tmp_path)
    shutil.copytree(tiny_base, folder)
    valid = (folder / name).read_bytes()
    document = json.loads(valid)
    if name == "tokenizer.json":  # change the settings, not one of hundreds of tokens
        vocabulary = {key: document["model"].pop(key) for key in ("vocab", "merges")}

    def complete(value):
        if name == "tokenizer.json" and isinstance(value.get("model"), dict):
            value["model"] = {**vocabulary, **value["model"]}
        return json.dumps(value).encode()

    @settings(MANY, max_examples=150)
    @given(data=changed_values(document).map(complete) | changed_bytes(valid) | st.sampled_from(NOT_OBJECTS))
    def check(data):
        (folder / name).write_bytes(data)
        message = outcome_of_model(folder, out)
        if message is not None:
            message.encode()
            assert (str(folder) in message or "tiny" in message) and len(message) < 2000, message[:500]

    check()


def test_bad_adapter_configs_give_one_message_with_the_file(trained, fetched_base, tmp_path):
    folder = trained(num_epochs=1)
    path, manifest = folder / "adapter" / CONFIG, json.loads((fetched_base / "manifest.json").read_text())
    valid = path.read_bytes()

    @settings(MANY, max_examples=100)
    @given(
        data=changed_values(json.loads(valid)).map(lambda value: json.dumps(value).encode())
        | changed_bytes(valid)
        | st.sampled_from(NOT_OBJECTS)
    )
    def check(data):
        path.write_bytes(data)
        try:
            load_trained(manifest, tmp_path, fetched_base / "tokenizer", folder / "adapter", "none")
        except DataError as error:
            assert str(folder / "adapter") in str(error) and len(str(error)) < 2000, str(error)[:500]

    check()
