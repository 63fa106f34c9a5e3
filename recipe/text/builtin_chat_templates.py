"""Contains the project's own chat templates, as Jinja texts: TEMPLATES["plain"] and TEMPLATES["chatml"]."""

# The parts of the templates below that write the tools of a row and the tool calls of a message.
TOOL_LIST = "<tools>\n{% for tool in tools %}{{ tool['function'] | tojson }}\n{% endfor %}</tools>"
TOOL_CALLS = (
    "{% for call in message['tool_calls'] or [] %}{{ '\n' if message['content'] or not loop.first }}"
    "<tool_call>{{ call['function'] | tojson }}</tool_call>{% endfor %}"
)
# Templates for tokenizers that have no chat template. They can also replace the template of a tokenizer. `chatml` is
# intended for tokenizers that have its two special tokens, <|im_start|> and <|im_end|>.
TEMPLATES = {
    "chatml": (
        "{% if tools %}<|im_start|>system\n{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}\n\n"
        "{% endif %}" + TOOL_LIST + "<|im_end|>\n{% endif %}"
        "{% for message in messages %}{% if not (tools and loop.first and message['role'] == 'system') %}"
        "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}" + TOOL_CALLS + "<|im_end|>\n{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "plain": (
        "{% if tools %}### Tools:\n" + TOOL_LIST + "\n\n{% endif %}"
        "{% for message in messages %}### {{ message['role'] | capitalize }}:\n{{ message['content'] }}"
        + TOOL_CALLS
        + "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}"
        "{% endfor %}{% if add_generation_prompt %}### Assistant:\n{% endif %}"
    ),
}
