from hypothesis import given
from hypothesis import strategies as st

from recipe.text.templates import Turn, asked, render, render_prompt


def test_alpacas_prompt_with_and_without_input():
    with_input = render_prompt("alpaca", {"instruction": "Add.", "input": "1 2"})
    assert with_input == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n"
        "### Response:\n"
    )
    for row in ({"instruction": "Go.", "input": ""}, {"instruction": "Go."}):
        prompt = render_prompt("alpaca", row)
        assert prompt.endswith("request.\n\n### Instruction:\nGo.\n\n### Response:\n") and "Input" not in prompt


def test_braces_and_field_names_in_a_row_are_left_alone():
    row = {"instruction": "{input} {0} {", "input": "{instruction} {input}", "output": "}"}
    [turn] = render("alpaca", row)
    assert "### Instruction:\n{input} {0} {\n\n### Input:\n{instruction} {input}\n\n" in turn.prompt
    assert turn.completion == "}"


def test_a_text_row_is_all_completion():
    assert render("text", {"text": "abc"}) == [Turn("", "abc")]


@given(st.text(max_size=40), st.text(max_size=40))
def test_what_is_asked_is_found_in_its_prompt_again(instruction, extra):
    wanted = f"{instruction}\n\n{extra}" if extra else instruction
    prompt = render_prompt("alpaca", {"instruction": instruction, "input": extra})
    assert asked(prompt) == wanted or "### Input:" in instruction
    assert asked("Name three colours.") == "Name three colours."
