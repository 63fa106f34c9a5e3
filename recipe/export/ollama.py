"""Writes a Modelfile for Ollama, with the template, the end tokens and the settings of the training.

    texts = template_texts(render)                   # what the training's template puts around messages
    modelfile(texts, "model-q8_0.gguf", ["<|im_end|>"], 4096)

Ollama does not read a model's own chat template, which is in Jinja. It has templates in Go's language. The training's
template is therefore taken apart: it renders sample conversations, and the texts around the messages become a Go
template. This suits templates that only put texts around messages, such as ChatML, Llama 2 and 3, and Mistral. Whether
a template does more is found out by rendering further conversations in both ways.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from recipe.core.errors import ParamsError

Messages = list[dict[str, str]]
Render = Callable[[Messages], str]  # raises jinja2's TemplateError for messages that a template does not accept
SYSTEM, FIRST, SECOND, THIRD = "XqSystem", "XqOne", "XqTwo", "XqThree"
SYSTEM_MESSAGES: Messages = [{"role": "system", "content": "Answer in one word."}]
TURNS: tuple[Messages, ...] = (
    [{"role": "user", "content": "Name a colour."}],
    [{"role": "user", "content": 'Why?\n\n{{ 1 }} """ é'}, {"role": "assistant", "content": "Because."},
     {"role": "user", "content": "<b>Why?</b>"}],
    [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "3"},
     {"role": "assistant", "content": "4"}, {"role": "user", "content": "5"}],
)  # fmt: skip
CONVERSATIONS = tuple(system + turns for system in ([], SYSTEM_MESSAGES) for turns in TURNS)
IN_ONE_TURN = (
    "The model was trained on single prompts: Ollama sends it the last message only, without the ones before it."
)
WITHOUT_SYSTEM = "The training's template has no place for a system message, so Ollama leaves it out."


@dataclass(frozen=True)
class TemplateTexts:
    """The texts that a chat template puts around messages.

    A prompt is `start`, the user's message, and `end`. Between an earlier message of the user and its answer there is
    `to_answer`, and between the answer and the next message `to_user`. With a system message, the prompt begins with
    `to_system`, the message, and `after_system`, instead of `start`. The texts of what a template does not support are
    None.
    """

    start: str
    end: str
    to_answer: str | None
    to_user: str | None
    to_system: str | None
    after_system: str | None

    def render(self, messages: Messages) -> str | None:
        """Render messages as Ollama does, or return None for messages that the template does not support."""
        text, rest = self.start, messages
        if messages[0]["role"] == "system":
            if self.to_system is None or self.after_system is None:
                return None
            text, rest = self.to_system + messages[0]["content"] + self.after_system, messages[1:]
        if len(rest) > 1 and (self.to_answer is None or self.to_user is None):
            return None
        for place, message in enumerate(rest):
            joint = "" if place == 0 else self.to_answer if message["role"] == "assistant" else self.to_user
            text += (joint or "") + message["content"]
        return text + self.end

    def notes(self) -> list[str]:
        """Return a sentence for each kind of message that Ollama leaves out."""
        return [
            *([IN_ONE_TURN] if self.to_answer is None else []),
            *([WITHOUT_SYSTEM] if self.to_system is None else []),
        ]

    def go_template(self) -> str:
        """Return the template in Go's language."""
        first = text_in_go(self.start)
        if self.to_system is not None:
            system = text_in_go(self.to_system) + "{{ $.System }}" + text_in_go(self.after_system)
            first = f"{{{{ if $.System }}}}{system}{{{{ else }}}}{first}{{{{ end }}}}"
        if self.to_answer is None:  # the last message only
            last = '{{- if and (eq .Role "user") (eq (len (slice $.Messages $i)) 1) }}'
            lines = [last + first + "{{ .Content }}{{- end }}"]
        else:
            lines = [
                '{{- if eq .Role "user" }}{{ if $first }}' + first + "{{ else }}" + text_in_go(self.to_user)
                + "{{ end }}{{ $first = false }}{{ .Content }}",
                '{{- else if eq .Role "assistant" }}' + text_in_go(self.to_answer) + "{{ .Content }}",
                "{{- end }}",
            ]  # fmt: skip
        return "\n".join(
            ["{{- $first := true }}", "{{- range $i, $_ := .Messages }}", *lines,
             "{{- end }}" + text_in_go(self.end)]
        )  # fmt: skip


def text_in_go(text: str | None) -> str:
    """Return a Go template that writes a text. A text outside of braces would lose spaces at its ends."""
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}" if text else ""


def template_texts(render: Render) -> TemplateTexts:
    """Take a chat template apart. Raises ParamsError if it does more than put texts around messages.

    `render` returns a prompt for an answer to the messages.
    """
    user, answer, again = ({"role": role, "content": text} for role, text in
                           (("user", FIRST), ("assistant", SECOND), ("user", THIRD)))  # fmt: skip
    start, end = _cut(render([user]), FIRST)
    to_answer = to_user = to_system = after_system = None
    if (text := _rendered(render, [user, answer, again])) is not None:
        _, to_answer, to_user, _ = _cut(text, FIRST, SECOND, THIRD)
    if (text := _rendered(render, [{"role": "system", "content": SYSTEM}, user])) is not None:
        to_system, after_system, _ = _cut(text, SYSTEM, FIRST)
    texts = TemplateTexts(start, end, to_answer, to_user, to_system, after_system)
    for messages in CONVERSATIONS:
        wanted, found = _rendered(render, messages), texts.render(messages)
        if wanted != found and wanted is not None:
            raise ParamsError(
                f"--to ollama: this model's chat template can't be written for Ollama. For {json.dumps(messages)} it "
                f"would render {found!r} instead of {wanted!r}. Use --to gguf: llama.cpp reads the template itself."
            )
    return texts


def _rendered(render: Render, messages: Messages) -> str | None:
    from jinja2 import TemplateError

    try:
        return render(messages)
    except TemplateError:  # the template does not accept such messages
        return None


def _cut(text: str, *contents: str) -> list[str]:
    """Return the texts before, between and after the given contents. Raises ParamsError if one is missing."""
    parts = []
    for content in contents:
        before, found, text = text.partition(content)
        if not found:
            raise ParamsError("--to ollama: this model's chat template does not write each message as it is.")
        parts.append(before)
    return [*parts, text]


def modelfile(texts: TemplateTexts, file: str, ends: list[str], context: int | None) -> str:
    """Return the text of a Modelfile.

    `file` is the name of the GGUF file in the same folder, `ends` are the tokens that end an answer, and `context` is
    the largest number of tokens in a conversation.
    """
    settings: dict[str, Any] = {
        # Greedy, as in the evaluation. Ollama would otherwise sample, and make repeated words less likely.
        "temperature": 0,
        "repeat_penalty": 1,
        **({"num_ctx": context} if context else {}),
    }
    lines = [
        f"FROM ./{file}",
        f'TEMPLATE """{texts.go_template()}"""',
        *(f"PARAMETER {name} {value}" for name, value in settings.items()),
        *(f'PARAMETER stop """{end}"""' for end in ends),
    ]
    return "\n".join([*(f"# {note}" for note in texts.notes()), *lines]) + "\n"
