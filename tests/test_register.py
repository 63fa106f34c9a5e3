import pytest

from recipe.core.errors import DataError
from recipe.register.promotion import Candidate, decide
from recipe.register.stage import flat, plain, run_metrics
from recipe.report.comparison import ScoredRow
from recipe.report.row_scores import read_row_scores, write_row_scores

TAGS = {
    "validation_sha256": "v", "tokenizer_sha256": "t", "validation_loss": "1.5", "base_validation_loss": "2.0",
}  # fmt: skip


def scored(loss, base=2.0, count=40, spread=0.2, matches=None):
    """Rows with losses around two means, as pairs (base, adapter)."""
    offsets = [spread * (index % 5 - 2) for index in range(count)]
    return [ScoredRow("", 9, 1, (base, loss + offset), (0, 0), matches) for offset in offsets]


def candidate(number, loss=1.5, general=None, tags=None, **changes):
    rows = {"validation": scored(loss, **changes), **({} if general is None else {"general": general})}
    return Candidate(number, {**TAGS, "validation_loss": str(loss), **(tags or {})}, rows)


def bare(number, loss, **tags):
    """A champion of an early version of this project, which stored no scores of rows."""
    return Candidate(number, {**TAGS, "validation_loss": str(loss), **tags})


OLD = candidate("1")


@pytest.mark.parametrize(
    ("rule", "new", "champion", "moves", "reason"),
    [
        ("if_better", candidate("2"), None, True,
         "version 2 is the first champion: validation loss 1.5000 against 2.0000 for the base model (95% interval of "),
        ("if_better", candidate("2", 1.99), None, False, "there is still no champion: validation loss 1.9900 "),
        ("if_better", candidate("2", 2.5), None, False, "there is still no champion"),
        ("if_better", candidate("2", 1.99, count=9), None, True, "(9 rows, too few for an interval)"),
        ("if_better", candidate("2", 1.4), OLD, True, "version 2 is now the champion: validation loss 1.4000 "),
        # Lower, but not beyond the interval: the spread of the differences is larger than the gain.
        ("if_better", candidate("2", 1.49, spread=0.5), OLD, False, "version 1 stays the champion: validation"),
        ("if_better", candidate("2"), OLD, False, "version 1 stays the champion"),
        ("if_better", candidate("2", 1.6), OLD, False, "1.6000 against 1.5000 for version 1"),
        ("if_better", candidate("2", 1, tags={"validation_sha256": "w"}), OLD, False, "can't be compared"),
        ("if_better", candidate("2", 1, tags={"tokenizer_sha256": "u"}), OLD, False, "a different tokenizer"),
        ("if_better", candidate("2", 1), Candidate("1", {"validation_loss": "2"}), False, "can't be compared"),
        ("if_better", candidate("2", 1.4), bare("1", 1.5), True, "without an interval, because version 1 stores none"),
        ("if_better", candidate("2", 1.6), bare("1", 1.5), False, "without an interval, because version 1 stores none"),
        ("if_better", candidate("2"), candidate("2"), False, "is already the champion"),
        ("always", candidate("2", 9, tags={"validation_sha256": "w"}), OLD, True, "replacing version 1"),
        ("always", candidate("2", 9), None, True, "version 2 is now the champion because registry.promote is always"),
        ("never", candidate("2", 0), None, False, "registry.promote is never"),
    ],
)  # fmt: skip
def test_the_alias_moves_only_to_a_better_adapter_unless_promote_says_otherwise(rule, new, champion, moves, reason):
    moved, sentence = decide(rule, 0.05, new, champion)
    assert reason in sentence
    assert moved is moves


@pytest.mark.parametrize(
    ("general", "moves", "reason"),
    [
        (scored(1.9, spread=0.0), True, "on 40 general rows, loss 1.9000 against 2.0000 for the base model"),
        (scored(2.04, spread=0.0), True, "within the margin of 0.05"),
        (scored(2.06, spread=0.0), False, "beyond the margin of 0.05"),
        # The loss is equal, but so uncertain that it may be worse by more than the margin.
        (scored(2.0, spread=2.0), False, "beyond the margin of 0.05"),
        (scored(1.9, matches=(True, True)), True, "and exact match 100.0% against 100.0% for the base model"),
        (scored(1.9, matches=(True, False)), False, "and exact match 0.0% against 100.0% for the base model"),
    ],
)
@pytest.mark.parametrize("champion", [None, OLD])
def test_the_alias_moves_only_if_the_adapter_is_not_worse_elsewhere(general, moves, reason, champion):
    moved, sentence = decide("if_better", 0.05, candidate("2", 1.2, general), champion)
    assert reason in sentence and "validation loss 1.2000" in sentence
    assert moved is moves
    assert decide("if_better", 0.05, candidate("2", 1.8, general), OLD)[0] is False  # not better on its own rows


def test_two_evaluations_of_different_numbers_of_rows_are_refused():
    with pytest.raises(DataError, match="40 and 39 rows"):
        decide("if_better", 0.05, candidate("2", count=39), OLD)


def test_row_scores_are_read_as_they_were_written(tmp_path):
    rows = {
        "validation": [
            ScoredRow('a, "b"\r\nc\r', 9, 4, (2.123456789012345, 1e-17), (1, 3), None),
            ScoredRow("", 7, 2, (3.0, 2.5), (0, 1), (False, True), (20.0, 100.0)),
        ],
        "general": [ScoredRow("数学", 1, 1, (0.0, float("inf")), (0, 0), (True, False), (100.0, 0.0))],
    }  # fmt: skip
    write_row_scores(tmp_path / "rows.csv", rows)
    assert read_row_scores(tmp_path / "rows.csv") == rows
    text = (tmp_path / "rows.csv").read_text()
    cut = text[: text.index("1e-17")]
    for damaged in ("", "set\n", text.replace("1e-17", "x"), cut, text.replace("base_loss", "b")):
        (tmp_path / "rows.csv").write_text(damaged)
        with pytest.raises(DataError, match=r"rows.csv .*Run `dvc repro`"):
            read_row_scores(tmp_path / "rows.csv")


def test_nested_numbers_become_flat_metrics():
    nested = {"base": {"loss": 1, "exact_match": None}, "rows": 3, "by_category": {"a b": {"base": 0.5}}, "name": "x"}
    assert flat("eval", nested) == {"eval/base/loss": 1.0, "eval/rows": 3.0, "eval/by_category/a b/base": 0.5}


def test_run_metrics_are_grouped_and_by_category_only_those_of_the_adapter():
    scores = {
        "rows": 3, "base": {"loss": 2.0}, "adapter": {"loss": 1.0, "exact_match": None}, "difference": {"loss": 1.0},
        "tasks": {"hellaswag": {"base": {"acc": 0.25}, "adapter": {"acc": 0.5}}},
    }  # fmt: skip
    groups = {
        "exact_match_by_category": {"sum": {"rows": 1, "base": 0.0, "adapter": 0.5, "low": None}},
        "loss_by_category": {"sum": {"rows": 3, "base": 2.0, "adapter": 1.0}},
        "loss_by_length": {"up to 9 tokens": {"rows": 3, "base": 2.0, "adapter": 1.0}},
    }  # fmt: skip
    assert run_metrics(scores, groups, {"last_loss": 1.5, "steps": 7, "dtype": "float32"}) == {
        "eval/base/loss": 2.0, "eval/adapter/loss": 1.0, "eval/difference/loss": 1.0,
        "eval/exact_match_by_category/sum": 0.5, "eval/loss_by_category/sum": 1.0,
        "eval/loss_by_length/up to 9 tokens": 1.0,
        "eval/tasks/hellaswag/base/acc": 0.25, "eval/tasks/hellaswag/adapter/acc": 0.5,
        "train/last_loss": 1.5, "train/steps": 7.0,
    }  # fmt: skip


def test_mlflow_accepts_every_cleaned_category_and_file_name():
    from mlflow.utils.validation import _validate_metric_name, _validate_model_version_tag

    names = ["Q&A", "what?", "a/../b", "rows (1).json", "ü", "数学", "..", "", "x" * 300]
    for name in plain(names).values():
        _validate_metric_name(f"eval/by_category/{name}/base")
        _validate_model_version_tag(f"data_sha256.{name}", "x")


def test_names_in_any_script_stay_apart():
    names = ["数学", "历史", "Q&A", "Q?A", "ä", "straße", "a/b", "a_b", "A_b", "..", "", "x" * 300, "x" * 299 + "y"]
    cleaned = plain(names)
    assert cleaned["数学"] == "数学" and cleaned["ä"] == "ä" and cleaned["straße"] == "straße"
    assert len({name.casefold() for name in cleaned.values()}) == len(names)
    assert all(cleaned[name].startswith("Q_A-") for name in ("Q&A", "Q?A"))
