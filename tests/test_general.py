"""Rows that the training does not target (data.general): fetched, tokenized, scored, and part of the promotion."""

import json
import os

import pytest
from conftest import alpaca, edit, enter_copy, invoke, small_recipe, write_jsonl
from mlflow import MlflowClient

from recipe.core.io import sha256_file
from recipe.report.row_scores import read_row_scores
from recipe.tokens.packing import read_sequences

RUNS = ("fetch data", "fetch model", "prepare", "analyze", "train", "evaluate", "register")


@pytest.fixture(scope="module")
def complete(tiny_base, tmp_path_factory):
    """A repository whose recipe `quick` names 20 general rows, and has run completely."""
    changes = {
        "max_generations: 450": "max_generations: 3", "max_new_tokens: 64": "max_new_tokens: 12",
        "num_epochs: 1 ": "num_epochs: 4 ", "global_batch_size: 4": "global_batch_size: 1",
        "general: null ": "general: other.jsonl ",
    }  # fmt: skip
    repository = small_recipe(tmp_path_factory.mktemp("general") / "repository", tiny_base, invoke, changes, ())
    folder = repository / "presets" / "quick"
    rows = [alpaca(f"What is the opposite of {n}?", f"minus {n} " * (1 if n % 2 else 30)) for n in range(20)]
    write_jsonl(folder / "other.jsonl", rows)
    before = dict(os.environ)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in ("pin", *RUNS):
            result = invoke(command)
            assert not result.exit_code, result.output
    os.environ.clear()
    os.environ.update(before)
    return repository


@pytest.fixture
def folder(complete, tmp_path, monkeypatch):
    return enter_copy(complete, tmp_path, monkeypatch)


def test_general_rows_are_pinned_and_scored_but_not_trained_on(folder):
    assert f"general_sha256: {sha256_file(folder / 'other.jsonl')}" in (folder / "params.yaml").read_text()
    manifest = json.loads((folder / "data" / "raw" / "manifest.json").read_text())
    assert ("general/other.jsonl", "general") in {(file["name"], file["split"]) for file in manifest["files"]}
    prepared = folder / "data" / "prepared"
    meta = json.loads((prepared / "meta.json").read_text())
    assert (meta["rows"]["train"], meta["rows"]["validation"], meta["general"]["rows"]) == (40, 3, 20)
    assert len(read_sequences(prepared / "rows.arrow")) == meta["rows"]["read"] == 43
    scores = json.loads((folder / "metrics" / "evaluate.json").read_text())["general"]
    # Half of the references are too long to be given within max_new_tokens, so only short ones are asked for.
    answers = [json.loads(line) for line in (folder / "reports/evaluation/general.jsonl").read_text().splitlines()]
    assert (scores["rows"], scores["prompts"], len(answers)) == (20, 3, 3)
    assert all(len(answer["completion"]) < 20 for answer in answers)
    rows = read_row_scores(folder / "reports" / "evaluation" / "rows.csv")
    assert (len(rows["validation"]), len(rows["general"])) == (3, 20)
    tokens = sum(row.loss_tokens for row in rows["general"])
    assert sum(row.losses[1] for row in rows["general"]) / tokens == pytest.approx(scores["adapter"]["loss"], abs=1e-6)
    page = (folder / "reports" / "evaluation" / "index.html").read_text()
    assert "General rows: scores" in page and "20 general rows" in page
    # The rows of the analysis are those of the training.
    analysis = json.loads((folder / "reports" / "analysis" / "summary.json").read_text())
    assert analysis["prepared"]["rows"]["read"] == 43


def test_the_version_says_how_it_does_on_the_general_rows(folder):
    client = MlflowClient(f"sqlite:///{folder.resolve().parents[1] / 'mlflow' / 'mlflow.db'}")
    version = client.get_model_version("quick", "1")
    scores = json.loads((folder / "metrics" / "evaluate.json").read_text())
    headline, _, promotion = version.description.partition("\n\n")
    assert headline.startswith("The adapter ") and "validation loss" in promotion
    general = scores["general"]
    assert (
        f"on 20 general rows, loss {general['adapter']['loss']:.4f} against {general['base']['loss']:.4f} for the base "
        "model (95% interval of the gain " in promotion
    )
    assert "exact match" in promotion and "margin of 0.05" in promotion
    assert version.tags["general_loss"] == f"{general['adapter']['loss']:.6f}" and "general_sha256" in version.tags
    assert "which the training did not target" in client.get_run(version.run_id).data.tags["mlflow.note.content"]


@pytest.mark.parametrize(
    ("change", "command", "parts"),
    [
        ("file", "fetch data", ["other.jsonl does not match data.general_sha256", "`recipe pin --update`"]),
        ("hash", "fetch data", ["data.general is other.jsonl, but data.general_sha256 is null. Run `recipe pin`"]),
        ("deleted", "fetch data", ["data.general: other.jsonl is not a file"]),
        ("name", "fetch data", ["data.general: params.yaml ends in '.yaml', but rows are read only from"]),
        ("null", "fetch data", ["data.general_sha256 is set, but data.general is null"]),
        ("leak", "prepare", ["1 general rows whose prompts are also in the training rows",
                             "general/other.jsonl, line 21 has the same prompt as train.jsonl, line 1"]),
        ("bad", "prepare", ["general/other.jsonl, line 21: 'output' is empty"]),
        ("column", "prepare", ["no row of general/other.jsonl has"]),
    ],
)  # fmt: skip
def test_general_rows_that_can_not_be_used_are_refused(folder, change, command, parts):
    file, sha256 = folder / "other.jsonl", sha256_file(folder / "other.jsonl")
    if change == "hash":
        edit(folder, f"general_sha256: {sha256}", "general_sha256: null")
    elif change == "deleted":
        file.unlink()
    elif change == "name":
        edit(folder, "general: other.jsonl", "general: params.yaml")
    elif change == "null":
        edit(folder, "general: other.jsonl", "general: null")
    elif change == "column":
        write_jsonl(file, [{"question": "a", "output": "b"}])
    else:
        first = json.loads((folder.parents[1] / "rows" / "train.jsonl").read_text().splitlines()[0])
        row = {**first, "output": "" if change == "bad" else "x", **({"instruction": "new"} if change == "bad" else {})}
        file.write_text(file.read_text() + json.dumps(row) + "\n")
    if command == "prepare":
        pinned = invoke("pin --update")
        assert not pinned.exit_code and "general_sha256" in pinned.output, pinned.output
        assert not invoke("fetch data").exit_code
    result = invoke(command)
    assert result.exit_code in (2, 3), result.output
    for part in parts:
        assert part in result.output


def test_a_new_recipe_from_this_one_finds_the_general_rows_and_other_rows_have_none(folder, monkeypatch):
    monkeypatch.chdir(folder.parents[1])
    edit(folder.parents[1], "general: null ", "general: presets/quick/other.jsonl ")
    edit(folder.parents[1], "source: demo/rows", "source: rows")
    for command, expected in (("new copy", "../quick/other.jsonl"), ("new bare --data rows", "null")):
        result = invoke(command)
        assert not result.exit_code, result.output
        text = (folder.parent / command.split()[1] / "params.yaml").read_text()
        assert f"  general: {expected} " in text
