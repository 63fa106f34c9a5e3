"""Checks the files of this bundle, and answers a prompt with its model.

    python answer.py                        # a known prompt: exit code 1 if the answer differs
    python answer.py "What is 12 + 30?"

Needs the packages in requirements.lock, and no network.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main(prompt: str | None) -> str:
    """Return the answer to a prompt, or to the known prompt if it is None."""
    check_files()
    os.environ.update(HF_HUB_OFFLINE="1", RECIPE_BASE_MODEL=str(HERE / "base"))
    sys.path.insert(0, str(HERE))
    from recipe.model.generate import answer_rows
    from recipe.model.load import load_trained
    from recipe.model.processor import pin_processor

    pin_processor()
    manifest, meta, train, check = (
        json.loads((HERE / f"{name}.json").read_text()) for name in ("manifest", "meta", "train", "check")
    )
    tokenizer, model = load_trained(manifest, HERE, HERE / "tokenizer", HERE / "adapter", train["quantization"])
    if prompt is None and check is None:
        return "All files are intact. There is no known answer to compare."
    messages = [{"role": "user", "content": prompt}] if prompt is not None else check["messages"]
    text = messages[-1]["content"]
    row = {"instruction": text, "text": text, "prompt": text}
    if meta["chat_template"] is not None:
        row = {"messages": messages}
    num_tokens = 256 if prompt is not None else check["max_tokens"]
    answer = answer_rows(model, tokenizer, meta, [row], num_tokens)[0].strip()
    if prompt is None and answer != check["answer"]:
        sys.exit(f"the answer to {text!r} is {answer!r}, but the trained adapter answers {check['answer']!r}.")
    return answer


def check_files() -> None:
    """Compare each file with SHA256SUMS, and end with exit code 1 if one differs."""
    listed = {}
    for line in (HERE / "SHA256SUMS").read_text().splitlines():
        sha256, _, name = line.partition("  ")
        listed[name] = sha256
    for name, expected in listed.items():
        path = HERE / name
        if not path.is_file():
            sys.exit(f"{name} is missing.")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                sys.exit(f"{name} differs from the file that was exported.")
    code = {path.relative_to(HERE).as_posix() for path in (HERE / "recipe").rglob("*.py")}
    if added := sorted(code - set(listed)):
        sys.exit(f"{added[0]} is not part of the bundle.")


if __name__ == "__main__":
    sys.stdout.write(main(sys.argv[1] if len(sys.argv) > 1 else None) + "\n")
