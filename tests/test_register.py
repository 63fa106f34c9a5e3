import pytest

from recipe.register.promotion import decide
from recipe.register.stage import flat, plain, run_metrics

TAGS = {"validation_sha256": "v", "tokenizer_sha256": "t", "validation_loss": "1.5"}


def tags(**changes):
    return {**TAGS, **changes}


@pytest.mark.parametrize(
    ("rule", "new", "champion", "moves", "reason"),
    [
        ("if_better", TAGS, None, True, "version 2 is the first champion"),
        ("if_better", tags(validation_loss="1.4"), ("1", TAGS), True, "1.4000 against 1.5000 for version 1"),
        ("if_better", tags(validation_loss="1.5"), ("1", TAGS), False, "version 1 stays the champion"),
        ("if_better", tags(validation_loss="1.6"), ("1", TAGS), False, "1.5000 against 1.6000 for version 2"),
        ("if_better", tags(validation_loss="1", validation_sha256="w"), ("1", TAGS), False, "can't be compared"),
        ("if_better", tags(validation_loss="1", tokenizer_sha256="u"), ("1", TAGS), False, "a different tokenizer"),
        ("if_better", tags(validation_loss="1"), ("1", {"validation_loss": "2"}), False, "can't be compared"),
        ("if_better", TAGS, ("2", TAGS), False, "is already the champion"),
        ("always", tags(validation_loss="9", validation_sha256="w"), ("1", TAGS), True, "replacing version 1"),
        ("never", tags(validation_loss="0"), None, False, "registry.promote is never"),
    ],
)
def test_the_alias_moves_only_to_a_better_adapter_unless_promote_says_otherwise(rule, new, champion, moves, reason):
    moved, sentence = decide(rule, "2", new, champion)
    assert moved is moves
    assert reason in sentence


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
