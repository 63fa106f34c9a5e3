"""What rows contain and the template does not use: reported, refused where it changes the meaning, or left out."""

import json

import pytest
from conftest import no_progress, paths_in
from test_chats import tokenizer  # noqa: F401 - a fixture

from recipe.analyze.params import AnalyzeParams
from recipe.analyze.stage import analyze
from recipe.core.errors import DataError
from recipe.core.services import Services
from recipe.prepare.stage import run
from recipe.text.chat_templates import LEFT_OUT

QUESTION, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}


def alpaca(**extra):
    return [{"instruction": f"Say {n}.", "output": str(n), **extra} for n in range(30)]


def chats(*messages, **extra):
    return [
        {"messages": [{"role": "user", "content": f"Hi {n}"}, ANSWER, *messages], **extra} for n in range(30)
    ]  # fmt: skip


def unused(prepared_folder):
    return json.loads((prepared_folder / "unused.json").read_text())


def test_unused_columns_are_reported_by_prepare_and_analyze(raw, fetched_base, sequence_params, tmp_path):
    rows = alpaca(id="a1", source="ada.lovelace@mail.com")
    rows[0]["topic"] = {"a": 1}
    rows[1] |= {"note": "", "tags": [], "extra": None}  # empty values say nothing
    paths = paths_in(tmp_path, raw=raw(rows), base=fetched_base, prepared=tmp_path / "prepared")
    params = {"sequence": sequence_params(columns={"instruction": "instruction", "output": "output"})}
    printed = run(params, paths, Services(no_progress, None, None, None, None, None))
    assert printed.splitlines()[-4:] == [
        "not used (in sequence.columns, use a column, or ignore it with null):",
        "  id      30 rows, such as 'a1'",
        "  source  30 rows, such as 'ada.lovelace@mail.com'",
        "  topic   1 row, such as '{\"a\": 1}'",
    ]
    summary = analyze(AnalyzeParams(num_rows=3, num_bins=5), paths, no_progress)
    assert {name: entry["rows"] for name, entry in summary["unused"].items()} == {"id": 30, "source": 30, "topic": 1}
    page = (paths.analysis / "index.html").read_text()
    assert "Not used" in page and "ada.lovelace@mail.com" not in page


def test_a_column_mapped_to_null_is_left_out_without_a_report(prepared):
    columns = {"instruction": "instruction", "output": "output", "id": None, "system": None}
    assert unused(prepared(alpaca(id="a1", system="Be kind."), columns=columns)) == {}


@pytest.mark.parametrize(
    ("rows", "settings", "reason"),
    [
        (alpaca(system="Be kind."), {}, "'system' changes what the answer should be, but is not used. To fix this, set "
         "sequence.template to alpaca_chat, or add `system: null` to sequence.columns to ignore it"),
        (alpaca(history=[["a", "b"]]), {}, "set sequence.template to alpaca_chat"),
        (alpaca(images=["a.png"]), {}, "'images' changes what the answer should be, but is not used. To fix this"),
        (alpaca(documents=[{"title": "a", "text": "b"}]), {}, "'documents' changes what the answer should be"),
        (chats(documents=[{"text": "b"}]), {"template": "chat"}, "'documents' changes what the answer should be"),
        (chats(chosen="a", rejected="b"), {"template": "chat"}, "the row contains preferences (chosen), but only"),
        (chats({**ANSWER, "reasoning_content": "Hm."}), {"template": "chat"}, "'messages.reasoning_content' is a part"),
        (chats({**ANSWER, "thinking": ""}, {**ANSWER, "thinking": "Hm."}), {"template": "chat"}, "template that writes "
         "thinking, or add `messages.thinking: null` to sequence.columns to ignore it"),
        (alpaca(label=False), {}, "'label' is false, so the row should not be trained on"),
        (alpaca(weight=0), {}, "'weight' is 0"),
        (chats(tools="[]"), {"template": "chat"}, r"use it (sequence.columns: tools: tools)"),
        (chats({**ANSWER, "images": ["a.png"]}), {"template": "chat"}, "'messages.images' changes"),
    ],
)  # fmt: skip
def test_rows_are_refused_if_what_is_not_used_changes_their_meaning(prepared, rows, settings, reason):
    with pytest.raises(DataError) as raised:
        prepared(rows, **chat_settings(settings))
    assert reason in str(raised.value)


def test_reasoning_that_the_chat_template_writes_only_in_some_messages_is_only_reported(prepared):
    """Templates such as Qwen3's leave out the reasoning before the last message from the user."""
    last = "{{ m.thinking if loop.last and not add_generation_prompt else '' }}"
    writes_last = WRITES_NAMES.replace("{{ m.content }}", last + "{{ m.content }}")
    settings = chat_settings({"template": "chat"}) | {"chat_template": writes_last}
    rows = chats({"role": "user", "content": "And?"}, ANSWER)
    rows[0]["messages"][0]["thinking"] = "Hm."  # of the user, so it is never written
    assert unused(prepared(rows, **settings)) == {"messages.thinking": {"rows": 1, "example": "Hm."}}
    columns = {"messages": "messages", "messages.thinking": None}
    rows[0]["messages"][1] = {**ANSWER, "thinking": "Hm."}
    assert unused(prepared(rows, **chat_settings({"template": "chat", "columns": columns}))) == {}


@pytest.mark.parametrize("extra", [{"label": 0}, {"label": True}, {"weight": 1}, {"system": ""}, {"tools": None}])
def test_other_values_are_only_reported(prepared, extra):
    assert set(unused(prepared(alpaca(**extra)))) <= set(extra)


def chat_settings(settings):
    if settings.get("template") == "chat":
        settings = {"columns": {"messages": "messages"}, "chat_template": WRITES_NAMES, **settings}
    return settings


WRITES_NAMES = (
    "{% for m in messages %}{{ m.name }}{{ m.role }}: {{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_keys_that_the_chat_template_does_not_write_are_reported(prepared):
    rows = chats()
    rows[0]["messages"] += [{"role": "user", "content": "Last"}]
    rows[1]["messages"][0] |= {"name": "Ada", "mood": "sunny"}
    folder = prepared(rows, **chat_settings({"template": "chat"}))
    assert unused(folder) == {
        LEFT_OUT: {"rows": 1, "example": "Last"},
        "messages.mood": {"rows": 1, "example": "sunny"},
    }
    columns = {"messages": "messages", "messages.mood": None}
    assert set(unused(prepared(rows, **chat_settings({"template": "chat", "columns": columns})))) == {LEFT_OUT}


def test_keys_inside_a_message_that_are_not_used_are_reported(prepared):
    rows = chats()
    rows[0]["messages"][0]["content"] = [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]
    rows[1]["messages"][0] |= {"from": "human", "value": "Something else"}
    rows[2]["messages"][0] |= {"from": "user", "value": rows[2]["messages"][0]["content"]}
    call = {"type": "function", "function": {"name": "go", "arguments": "{}", "strict": True}}
    rows[3]["messages"][-1] = {**rows[3]["messages"][-1], "tool_calls": [call]}
    rows[4]["messages"][0] |= {"from": "system"}
    template = WRITES_NAMES.replace("{{ m.content }}", "{{ m.content }}{{ m.tool_calls }}")
    settings = {"template": "chat", "chat_template": template}
    assert unused(prepared(rows, **chat_settings(settings))) == {
        "messages.content.cache_control": {"rows": 1, "example": '{"type": "ephemeral"}'},
        "messages.from": {"rows": 1, "example": "system"},
        "messages.tool_calls.function.strict": {"rows": 1, "example": "true"},
        "messages.value": {"rows": 1, "example": "Something else"},
    }


def test_an_input_that_is_the_text_nan_is_reported_as_not_used(prepared):
    folder = prepared(alpaca(input="nan"))
    assert unused(folder) == {"input": {"rows": 30, "example": "nan"}}
    assert "### Input" not in (folder / "validation.jsonl").read_text()


def test_rows_that_all_have_the_same_prompt_cannot_be_split(prepared):
    rows = [{"instruction": "Write a poem.", "output": f"Poem {n}"} for n in range(30)]
    with pytest.raises(DataError, match=r"all 30 rows have the same prompt.*data.validation_split"):
        prepared(rows)
    assert prepared(rows[1:], [{"instruction": "Write an ode.", "output": "Ode"}])
