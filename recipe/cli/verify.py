"""Implements `recipe verify`: rebuilds a commit, and prints which outputs are identical and what differs."""

import json
import os
from collections.abc import Callable

from recipe.cli.context import HERE
from recipe.core.config import load_yaml
from recipe.verify.compare import Output, changed_sources, compare
from recipe.verify.environment import FILE, differences, environment
from recipe.verify.rebuild import Rebuild, show


def verify(revision: str, stage: str | None, tolerance: float, say: Callable[[str], None], *, keep: bool) -> bool:
    """Rebuild the commit, pass each line of the result to `say`, and return whether all outputs are identical."""
    with Rebuild.of(HERE, revision, stage) as rebuild:
        where = os.path.relpath(rebuild.place)
        say(f"rebuilding {', '.join(rebuild.stages)} of commit {rebuild.commit[:12]} in {where}")
        if changes := rebuild.changes():
            count = len(changes.splitlines())
            say(f"note: {count} changed or untracked files of the working tree are not part of this commit.")
        rebuild.run()
        say("")
        outputs = compare(rebuild, tolerance)
        width = max(len(output.path) for output in outputs)
        for output in outputs:
            say(f"{output.path:{width}}  {_status(output, tolerance)}")
            for difference in output.differences:
                say(f"    {difference.path}: {difference.text}")
        for path in changed_sources(rebuild):
            say(f"note: {path} is not the input that dvc.lock records.")
        different = [output for output in outputs if output.differences]
        if different:
            for line in _environment(rebuild):
                say(line)
            say(
                f"different: {len(different)} of {len(outputs)} outputs. The first one is {different[0].path}, of the "
                f"{different[0].stage} stage. The rebuild is in {where}."
            )
        else:
            if not keep:
                rebuild.remove()
            within = f"all numbers are within {tolerance:g} of" if tolerance else "the rebuild has"
            say(f"identical: {within} the recorded {'ones' if tolerance else 'bytes'} in all {len(outputs)} outputs.")
            if tolerance:
                say("Charts (SVG) were not compared. The numbers that they show are in the other files.")
    return not different


def _status(output: Output, tolerance: float) -> str:
    if not output.differences:
        return f"identical ({output.num_files} {'file' if output.num_files == 1 else 'files'})"
    numbers = [difference.largest for difference in output.differences if difference.largest is not None]
    if len(numbers) < len(output.differences):
        return "different"
    return f"different by up to {max(numbers):.2g}" + (f" (tolerance {tolerance:g})" if tolerance else "")


def _environment(rebuild: Rebuild) -> list[str]:
    """Return lines with what differs between this environment and that of the recorded training run."""
    text = show(rebuild.repository, rebuild.commit, rebuild.folder / FILE)
    if not text:
        return [f"The commit has no {FILE}, so the environment of the recorded run is unknown."]
    num_threads = load_yaml(rebuild.place / "params.yaml")["train"]["num_threads"]
    lines = differences(json.loads(text), environment(rebuild.clone, num_threads))
    if not lines:
        return ["The environment is the same as that of the recorded run, as far as it is recorded."]
    return ["The environment differs from that of the recorded run:", *(f"    {line}" for line in lines)]
