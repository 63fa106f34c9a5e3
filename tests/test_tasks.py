"""evaluate.tasks without lm-evaluation-harness, and with the real harness, installed from its lock file."""

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
SCRIPT = """
import sys
from recipe.core.errors import RecipeError
from recipe.evaluate.lm_eval import load_tasks, run_tasks
for names in {bad}:
    try:
        load_tasks(names)
    except RecipeError as error:
        print(type(error).__name__, error)
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = (auto.from_pretrained({base!r}) for auto in (AutoModelForCausalLM, AutoTokenizer))
tasks = load_tasks([{task!r}])
first = run_tasks(tasks, model, tokenizer)
assert run_tasks(tasks, model, tokenizer) == first
print(first)
"""


def test_missing_harness_is_reported_with_the_install_command(trained, fetched_base, monkeypatch):
    folder = trained()
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MachineError, match=r"hellaswag, but .* is not installed.*pip install .*tasks\.lock"):
        evaluate_in(folder, fetched_base, tasks=["hellaswag"])
    assert not (folder / "report").exists()
    assert (ROOT / recipe.evaluate.lm_eval.LOCK).is_file()


def test_harness_is_not_needed_without_tasks():
    assert recipe.evaluate.lm_eval.run_tasks({}, None, None) == {}


@pytest.fixture(scope="module")
def with_harness(tmp_path_factory):
    """A Python with the harness installed from its lock file and all other packages from this environment."""
    folder = tmp_path_factory.mktemp("harness")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site_packages = subprocess.run(
        [folder / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    (Path(site_packages) / "rest.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "-q", "--no-deps"]
    result = subprocess.run(
        [*pip, "--require-hashes", "-r", ROOT / recipe.evaluate.lm_eval.LOCK],
        capture_output=True,
        text=True,
        check=False,
    )
    if "Could not find a version" in result.stderr or "Temporary failure" in result.stderr:
        pytest.skip("can't install lm-evaluation-harness: no package registry is reachable")
    assert result.returncode == 0, result.stderr[-2000:]
    return folder / "bin" / "python"


@pytest.mark.slow
def test_real_harness_scores_a_custom_task_and_reports_invalid_tasks(with_harness, tmp_path):
    rows = [{"question": f"What is {n} + 1?", "choices": [str(n + 1), str(n + 5)], "answer": 0} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(TASK.format(rows=tmp_path / "rows.jsonl"))
    (tmp_path / "broken.yaml").write_text("task: [")
    bad = [["hellaswagg"], ["absent.yaml"], [str(tmp_path / "broken.yaml")], ["hellaswag"]]
    script = SCRIPT.format(bad=bad, base=str(ROOT / "demo" / "base"), task=str(tmp_path / "mine.yaml"))
    result = subprocess.run(
        [with_harness, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache"), "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    lines = result.stdout.splitlines()
    assert "has no task hellaswagg. Did you mean hellaswag or" in lines[0]
    assert lines[1].startswith("ParamsError") and "file absent.yaml does not exist" in lines[1]
    assert lines[2].startswith("DataError") and "broken.yaml is not a valid task" in lines[2]
    assert lines[3].startswith("MachineError") and "can't load the rows of hellaswag" in lines[3]
    scores = json.loads(lines[-1].replace("'", '"'))
    assert 0 <= scores["sums"]["acc"] <= 1 and scores["sums"]["acc_stderr"] > 0
    assert "loglikelihood" not in result.stderr and "Generating" not in result.stderr  # no progress bars in logs
