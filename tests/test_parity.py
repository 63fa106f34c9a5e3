"""Every way out of a recipe, on a pretrained model: exports and servers that answer like the trained adapter."""

import re

import pytest
from runs import ROOT, run
from test_formats import STAGES
from test_pretrained import new_recipe, small_preset, smollm2, sum_of

pytestmark = pytest.mark.long
assert smollm2  # a fixture


def addition(n):
    row = sum_of(n)
    return {"instruction": row["question"], "input": "", "output": row["answer"]}


CASES = {
    "chats": None,
    "single prompts": {"validation_fraction: 0.1": "validation_fraction: 0.3"},
    "single prompts in nf4": {
        "quantization: none": "quantization: nf4", "validation_fraction: 0.1": "validation_fraction: 0.3",
        "max_length: 512": "max_length: 128",
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_all_exports_and_servers_are_the_trained_model(smollm2, case, tmp_path):
    changes = CASES[case]
    if changes is None:
        folder = small_preset(tmp_path / "repository", smollm2)
    else:
        rows = 24 if "nf4" in case else 60
        folder = new_recipe(tmp_path / "repository", smollm2, addition, changes, rows=rows)
    for stage in STAGES:
        run(folder, "recipe", *stage.split())
    table = run(ROOT, "python", "-m", "bench.parity", folder)
    print(table)
    lines = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in
             table.splitlines() if line.startswith("| ")}  # fmt: skip
    assert len(lines) >= 9
    for name, cells in lines.items():
        if name == "form" or "not kept" in name:
            continue
        if cells[0].startswith("refused"):  # after a few steps, rounding may change answers
            assert "float32" not in name, (name, cells)
            continue
        equal, of = map(int, re.fullmatch(r"(\d+) of (\d+)", cells[3]).groups())
        assert of
        if "nf4" not in case and ("float32" in name or "mlflow" in name):
            assert equal == of, (name, cells)
    if "nf4" in case:
        assert any("not kept" in name for name in lines)
