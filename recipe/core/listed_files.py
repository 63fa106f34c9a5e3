"""Gives a library access to only those files of a folder that are listed.

    with only_files(Path("models/llama"), ["config.json", "model.safetensors"]) as folder:
        AutoModelForCausalLM.from_pretrained(folder)

transformers reads some files merely because they are in a model's folder: an adapter (`adapter_config.json`), which it
adds to the base model, or a `model.safetensors` next to the shards that were checked. A file that was added after the
fetch stage must not be read, and neither must a pickle.
"""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def only_files(source: Path, names: Iterable[str]) -> Iterator[Path]:
    """Yield a temporary folder that contains links to the named files of `source` and nothing else.

    The folder has the name of `source`, because transformers stores remote code under this name.
    """
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / source.resolve().name
        folder.mkdir()
        for name in names:
            (folder / name).symlink_to((source / name).resolve())
        yield folder
