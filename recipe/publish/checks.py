"""Finds reasons not to publish: a license, files that are not committed, and secrets.

license_problem("cc-by-nd-4.0", "the base model")
secrets_in(folder, {"HF_TOKEN": "hf_..."})
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from recipe.analyze.text_checks import KEY

# Licenses under which a changed model may be passed on (names of the Hub,
# https://huggingface.co/docs/hub/repositories-licenses), some with conditions. Others must be confirmed.
PERMISSIVE = re.compile(
    r"apache-2.0|mit|bsd(-.*)?|isc|zlib|unlicense|cc0-1.0|wtfpl|mpl-2.0|(a|l)?gpl(-.*)?|epl-.*|eupl-.*|ecl-2.0|artistic-2.0"
    r"|cc-by(-sa|-nc|-nc-sa)?-[1-4].[05]|odc-by|odbl|pddl|cdla-.*|ms-pl|postgresql|ofl-1.1"
    r"|(bigscience-|creativeml-|bigcode-)?openrail.*|bigscience-bloom-rail-1.0|llama[0-9.]*|gemma|bespoke-.*"
)
FORBIDS = re.compile(r"cc-by(-nc)?-nd-.*")
SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|PRIVATE_?KEY", re.IGNORECASE)
SHORTEST_SECRET = 8
BINARY = (".safetensors", ".gguf")
OVERLAP = 512  # bytes of a block that are searched again with the next block
BLOCK = 1 << 20


def license_problem(name: str | None, what: str) -> str | None:
    """Return a sentence if the license of `what` does not clearly allow publishing a model that is derived from it."""
    if name is None:
        return f"the license of {what} is not stated."
    if FORBIDS.fullmatch(name.lower()):
        return f"the license of {what}, {name}, does not allow changed versions."
    if not PERMISSIVE.fullmatch(name.lower()):
        return f"the license of {what}, {name}, is not one that is known to allow changed versions."
    return None


def secrets_in(folder: Path, environment: Mapping[str, str] = os.environ) -> Iterator[str]:
    """Yield the name of each file that contains a key, a token, or the value of a secret variable, with its kind."""
    values = {
        name: value.encode()
        for name, value in environment.items()
        if SECRET_NAMES.search(name) and len(value) >= SHORTEST_SECRET
    }
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found = _secret(path, values)
            if found:
                yield f"{path.relative_to(folder).as_posix()} contains {found}"


def _secret(path: Path, values: dict[str, bytes]) -> str | None:
    is_text = path.suffix not in BINARY
    with path.open("rb") as file:
        tail = b""
        while block := file.read(BLOCK):
            data = tail + block
            for name, value in values.items():
                if value in data:
                    return f"the value of {name}"
            if is_text and KEY.search(data.decode("utf-8", "replace")):
                return "what looks like a key or token"
            tail = data[-OVERLAP:]
    return None
