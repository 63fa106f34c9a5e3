"""Versions with different code in one process: each answers with the code that it was registered with."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from conftest import ROOT

# Registered by commit 3842687 from the demo (r 1, 0.3 epochs), before the package was split into folders.
OLD_VERSION = Path(__file__).parent / "data" / "version-before-folders.tar.xz"
ROWS = [{"instruction": "Turn this list around: torch, puppet, otter"}, {"instruction": "What is 12 + 30?"}]


@pytest.fixture
def old_version(tmp_path):
    with tarfile.open(OLD_VERSION) as archive:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4 and newer
        archive.extractall(tmp_path / "old", **safely)
    return tmp_path / "old"


def answers(*lines):
    """The JSON that a program prints when it runs in a separate process in the repository root."""
    code = "\n".join(["import json, mlflow", f"rows = {ROWS!r}", *lines])
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": ""}, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def predict(folder):
    return f"mlflow.pyfunc.load_model({str(folder)!r}).predict(rows, {{'max_new_tokens': 12}})"


def test_a_version_from_before_the_subpackages_answers_if_this_package_is_imported(old_version):
    alone = answers(f"print(json.dumps({predict(old_version)}))")
    assert len(set(alone)) == 2
    imported = "import recipe.model.generate, recipe.tokens.tokenizer"
    assert answers(imported, f"print(json.dumps({predict(old_version)}))") == alone


def test_two_versions_with_different_prompts_each_use_their_own(old_version, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(old_version, other)
    prompts = other / "code" / "recipe" / "prompts.py"
    text = prompts.read_text()
    assert "### Instruction:" in text
    prompts.write_text(text.replace("### Instruction:", "Q:").replace("### Response:", "A:"))
    separate = [answers(f"print(json.dumps({predict(folder)}))") for folder in (old_version, other)]
    assert separate[0] != separate[1]
    together = answers("import recipe.core.errors", f"print(json.dumps([{predict(old_version)}, {predict(other)}]))")
    assert together == separate
