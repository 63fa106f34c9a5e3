"""`recipe compare`: two registered versions, row by row."""

import json
import os
import shutil

import pytest
from conftest import alpaca, edit, enter_copy, invoke, small_recipe, write_jsonl
from mlflow import MlflowClient

from recipe.compare.rows import compare_versions, sentences, text
from recipe.core.errors import DataError
from recipe.register.promotion import Candidate
from recipe.report.comparison import ScoredRow
from recipe.report.row_scores import read_row_scores
from recipe.report.score_tables import Names

RUNS = ("fetch data", "fetch model", "prepare", "analyze", "train", "evaluate", "register")
NAMES = Names("version 1", "version 2", "version 1", "version 2 of quick")


def rows(adapter_loss, category="a", count=20):
    return [ScoredRow(category, 9, 1, (5.0, adapter_loss + index % 3), (0, 1), (False, True), (1.0, 90.0))
            for index in range(count)]  # fmt: skip


def version(number, sets, **tags):
    return Candidate(number, {"validation_sha256": "v", "tokenizer_sha256": "t", "general_sha256": "g", **tags}, sets)


def test_the_gain_is_that_of_the_new_adapter_over_the_old_one():
    compared = compare_versions(version("1", {"validation": rows(2.0)}), version("2", {"validation": rows(1.0)}), NAMES)
    result = compared.results["validation"]
    assert (result["base"]["loss"], result["adapter"]["loss"]) == (pytest.approx(2.95), pytest.approx(1.95))
    assert result["difference"]["loss"] == 1.0 and result["difference"]["exact_match"] == 0.0
    [sentence] = sentences(compared)
    assert sentence.startswith("Version 2 of quick is better than version 1: validation loss 1.950 against 2.950")
    assert compared.notes == []


def test_both_sets_are_compared_and_a_set_that_can_not_be_is_named():
    old = version("1", {"validation": rows(2.0), "general": rows(2.0)})
    new = version("2", {"validation": rows(1.0), "general": rows(3.0)})
    _, general = sentences(compare_versions(old, new, NAMES))
    assert general.startswith("On 20 general rows, version 2 of quick is not better than version 1: general loss 3.950")
    other = version("2", new.rows, general_sha256="h")
    note = "The general rows are not compared: the versions were evaluated with different rows, tokens or"
    assert sentences(compare_versions(old, other, NAMES))[1].startswith(note)
    without = version("3", {"validation": rows(1.0)})
    assert "version 3 stores no scores of these rows" in text(compare_versions(old, without, NAMES))


def test_versions_without_a_common_set_are_refused():
    old = version("1", {"validation": rows(2.0)})
    for new, reason in (
        (version("2", {}), "version 2 stores no scores of these rows"),
        (version("2", old.rows, tokenizer_sha256="u"), "the versions have different tokenizers"),
        (version("2", old.rows, validation_sha256="w"), "different rows, tokens or completion masks"),
    ):
        with pytest.raises(DataError, match=f"can't be compared.*{reason}"):
            compare_versions(old, new, NAMES)


def test_two_versions_without_scores_are_refused():
    with pytest.raises(DataError, match="Neither version stores the scores"):
        compare_versions(version("1", {}), version("2", {}), NAMES)


def test_the_terminal_shows_at_most_20_categories():
    many = [row for number in range(25) for row in rows(1.0, f"category {number:02}", 2)]
    shown = text(compare_versions(version("1", {"validation": many}), version("2", {"validation": many}), NAMES))
    assert "category 19" in shown and "category 20" not in shown
    assert "and 5 more categories, which the report lists" in shown


def numbered(n):
    return {**alpaca(f"Say number {n} again.", f"{n} {n}"), "category": f"digits {len(str(n))}"}


@pytest.fixture(scope="module")
def complete(tiny_base, tmp_path_factory):
    """A repository whose recipe `quick` registered two versions, with general rows and categories."""
    changes = {
        "max_generations: 450": "max_generations: 3", "max_new_tokens: 64": "max_new_tokens: 8",
        "num_epochs: 1 ": "num_epochs: 3 ", "global_batch_size: 4": "global_batch_size: 1",
        "general: null ": "general: other.jsonl ",
    }  # fmt: skip
    place = tmp_path_factory.mktemp("compare") / "repository"
    repository = small_recipe(place, tiny_base, invoke, changes, (), make_row=numbered)
    folder = repository / "presets" / "quick"
    write_jsonl(folder / "other.jsonl", [alpaca(f"What is the opposite of {n}?", f"minus {n}") for n in range(12)])
    write_jsonl(repository / "rows" / "validation.jsonl", [numbered(n) for n in range(95, 125)])
    before = dict(os.environ)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in ("pin", *RUNS):
            result = invoke(command)
            assert not result.exit_code, result.output
        edit(folder, "num_epochs: 3 ", "num_epochs: 1 ")
        for command in RUNS[4:]:
            result = invoke(command)
            assert not result.exit_code, result.output
        shutil.rmtree(folder / "reports")
    os.environ.clear()
    os.environ.update(before)
    return repository


@pytest.fixture
def folder(complete, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # as the command sets it in its own process
    return enter_copy(complete, tmp_path, monkeypatch)


def test_a_version_is_compared_with_the_champion_or_with_another_one(folder):
    result = invoke("compare models:/quick/2")
    assert not result.exit_code, result.output
    lines = result.output.splitlines()
    assert lines[0].startswith("Version 2 of quick is not better than version 1: validation loss")
    assert lines[1].startswith("On 12 general rows, version 2 of quick is ")
    assert "30 validation rows" in result.output and "12 general rows" in result.output
    assert "loss by category" in result.output and "digits 3" in result.output and "chrF" in result.output
    assert lines[-1] == "report: reports/compare/quick-2-and-1/index.html"
    page = (folder / "reports" / "compare" / "quick-2-and-1" / "index.html").read_text()
    assert "Version 2 of quick and version 1" in page and page.count("<svg") >= 2
    client = MlflowClient(f"sqlite:///{folder.resolve().parents[1] / 'mlflow' / 'mlflow.db'}")
    one, two = (
        read_row_scores(folder.__class__(client.download_artifacts(
            client.get_model_version("quick", number).run_id, "evaluation/rows.csv", str(folder))))["validation"]
        for number in ("1", "2")
    )  # fmt: skip
    gain = sum(a.losses[1] - b.losses[1] for a, b in zip(one, two, strict=True)) / sum(row.loss_tokens for row in one)
    assert f"({abs(gain):.3f} higher, 95% interval" in lines[0] and gain < 0

    reverse = invoke("compare models:/quick/1 models:/quick/2")
    assert not reverse.exit_code and reverse.output.startswith("Version 1 of quick is better than version 2"), reverse
    assert json.loads((folder / "metrics" / "evaluate.json").read_text())["general"]["rows"] == 12


def test_what_can_not_be_compared_is_refused_in_one_line(folder):
    for command, parts in (
        ("compare models:/quick/1", ["are the same version, 1 of quick", "models:/quick/2"]),
        ("compare quick", ["'quick' is not a registered version"]),
        ("compare models:/quick/9", ["has no models:/quick/9"]),
        ("compare models:/other/1", ["has no models:/other"]),
    ):
        result = invoke(command)
        assert result.exit_code in (2, 3, 6), result.output
        assert len(result.output.strip().splitlines()) == 1 and all(part in result.output for part in parts)
