"""Implements `recipe verify`: rebuilds a commit, and prints which outputs are identical and what differs."""

import json
import os
from collections.abc import Iterator

from recipe.cli.context import HERE
from recipe.core.config import load_yaml
from recipe.verify.compare import Output, changed_sources, compare
from recipe.verify.environment import FILE, differences, environment
from recipe.verify.rebuild import Rebuild, show


def verify(revision: str, stage: str | None, tolerance: float, *, keep: bool) -> Iterator[str]:
    """Rebuild the commit and yield the lines of the result. The last line starts with `identical` or `different`.

    Lines before the rebuild are yielded at once.
    """
    with Rebuild.of(HERE, revision, stage) as rebuild:
        where = os.path.relpath(rebuild.place)
        yield f"rebuilding {', '.join(rebuild.stages) or 'every stage'} of commit {rebuild.commit[:12]} in {where}"
        if changes := rebuild.changes():
            count = len(changes.splitlines())
            yield f"note: {count} changed or untracked files of the working tree are not part of this commit."
        rebuild.run()
        yield ""
        outputs = compare(rebuild, tolerance)
        width = max(len(output.path) for output in outputs)
        for output in outputs:
            yield f"{output.path:{width}}  {_status(output, tolerance)}"
            for difference in output.differences:
                yield f"    {difference.path}: {difference.text}"
        different = [output for output in outputs if output.differences]
        for path in changed_sources(rebuild):
            yield f"note: {path} is not the input that dvc.lock records."
        if not different:
            if not keep:
                rebuild.remove()
            yield (
                f"identical: the rebuild has the recorded bytes in all {len(outputs)} outputs."
                if not tolerance
                else (f"identical within {tolerance:g}: all {len(outputs)} outputs.")
            )
            return
        yield from _environment(rebuild)
        yield (
            f"different: {len(different)} of {len(outputs)} outputs. The first one is {different[0].path}, of the "
            f"{different[0].stage} stage. The rebuild is in {where}."
        )


def _status(output: Output, tolerance: float) -> str:
    if not output.differences:
        return f"identical ({output.num_files} {'file' if output.num_files == 1 else 'files'})"
    numbers = [difference.largest for difference in output.differences if difference.largest is not None]
    if len(numbers) < len(output.differences):
        return "different"
    return f"different by up to {max(numbers):.2g}" + (f" (tolerance {tolerance:g})" if tolerance else "")


def _environment(rebuild: Rebuild) -> Iterator[str]:
    """Yield what differs between this environment and the one of the recorded training run."""
    text = show(rebuild.repository, rebuild.commit, rebuild.folder / FILE)
    if not text:
        yield f"The commit has no {FILE}, so the environment of the recorded run is unknown."
        return
    num_threads = load_yaml(rebuild.place / "params.yaml")["train"]["num_threads"]
    lines = differences(json.loads(text), environment(rebuild.clone, num_threads))
    yield (
        "The environment differs from that of the recorded run:"
        if lines
        else ("The environment is the same as that of the recorded run, as far as it is recorded.")
    )
    for line in lines:
        yield f"    {line}"
