"""evaluate.tasks: without lm-evaluation-harness, and with the real one, installed from its lock."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import ROOT, evaluate_in

import recipe.evaluate.lm_eval
from recipe.core.errors import MachineError

TASK = """task: sums
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
ASK = """
import sys
from recipe.core.errors import RecipeError
from recipe.evaluate.lm_eval import load_tasks, run_tasks
for names in {bad}:
    try:
        load_tasks(names)
    except RecipeError as error:
        print(type(error).__name__, error)
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = (kind.from_pretrained({base!r}) for kind in (AutoModelForCausalLM, AutoTokenizer))
tasks = load_tasks([{task!r}])
first = run_tasks(tasks, model, tokenizer)
assert run_tasks(tasks, model, tokenizer) == first
print(first)
"""


def test_without_the_harness_the_command_that_installs_it_is_named(trained, fetched_base, monkeypatch):
    folder = trained()
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MachineError, match=r"hellaswag, and .* is not installed.*pip install .*tasks\.lock"):
        evaluate_in(folder, fetched_base, tasks=["hellaswag"])
    assert not (folder / "report").exists()
    assert (ROOT / recipe.evaluate.lm_eval.LOCK).is_file()


def test_no_task_needs_no_harness():
    assert recipe.evaluate.lm_eval.run_tasks({}, None, None) == {}


@pytest.fixture(scope="module")
def with_harness(tmp_path_factory):
    """A Python that has the harness from its lock, and all else from this environment."""
    folder = tmp_path_factory.mktemp("harness")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    own = subprocess.run(
        [folder / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    (Path(own) / "rest.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "-q", "--no-deps"]
    done = subprocess.run(
        [*pip, "--require-hashes", "-r", ROOT / recipe.evaluate.lm_eval.LOCK],
        capture_output=True,
        text=True,
        check=False,
    )
    if "Could not find a version" in done.stderr or "Temporary failure" in done.stderr:
        pytest.skip("no package registry: lm-evaluation-harness can't be installed")
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "bin" / "python"


@pytest.mark.slow
def test_the_real_harness_scores_a_task_of_ones_own_and_says_what_is_wrong(with_harness, tmp_path):
    rows = [{"question": f"What is {n} + 1?", "choices": [str(n + 1), str(n + 5)], "answer": 0} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(TASK.format(rows=tmp_path / "rows.jsonl"))
    (tmp_path / "broken.yaml").write_text("task: [")
    bad = [["hellaswagg"], ["absent.yaml"], [str(tmp_path / "broken.yaml")], ["hellaswag"]]
    ask = ASK.format(bad=bad, base=str(ROOT / "demo" / "base"), task=str(tmp_path / "mine.yaml"))
    done = subprocess.run(
        [with_harness, "-c", ask], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache"), "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout.splitlines()
    assert "has no task hellaswagg. Did you mean hellaswag or" in said[0]
    assert said[1].startswith("ParamsError") and "no file absent.yaml" in said[1]
    assert said[2].startswith("DataError") and "broken.yaml is no task" in said[2]
    assert said[3].startswith("MachineError") and "the rows of hellaswag can't be had" in said[3]
    scores = json.loads(said[-1].replace("'", '"'))
    assert 0 <= scores["sums"]["acc"] <= 1 and scores["sums"]["acc_stderr"] > 0
    assert "loglikelihood" not in done.stderr and "Generating" not in done.stderr  # a log has none of its bars
