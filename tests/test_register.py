import pytest

from recipe.register import decide, flat, plain

TAGS = {"validation_sha256": "v", "tokenizer_sha256": "t", "validation_loss": "1.5"}


def tags(**changes):
    return {**TAGS, **changes}


@pytest.mark.parametrize(
    ("rule", "new", "champion", "moves", "says"),
    [
        ("if_better", TAGS, None, True, "version 2 is the first champion"),
        ("if_better", tags(validation_loss="1.4"), ("1", TAGS), True, "1.4000 against 1.5000 of version 1"),
        ("if_better", tags(validation_loss="1.5"), ("1", TAGS), False, "version 1 stays the champion"),
        ("if_better", tags(validation_loss="1.6"), ("1", TAGS), False, "1.5000 against 1.6000 of version 2"),
        ("if_better", tags(validation_loss="1", validation_sha256="w"), ("1", TAGS), False, "can't be compared"),
        ("if_better", tags(validation_loss="1", tokenizer_sha256="u"), ("1", TAGS), False, "another tokenizer"),
        ("if_better", tags(validation_loss="1"), ("1", {"validation_loss": "2"}), False, "can't be compared"),
        ("if_better", TAGS, ("2", TAGS), False, "champion already"),
        ("always", tags(validation_loss="9", validation_sha256="w"), ("1", TAGS), True, "it was version 1"),
        ("never", tags(validation_loss="0"), None, False, "as registry.promote says"),
    ],
)
def test_the_alias_moves_only_to_a_better_adapter_or_when_told(rule, new, champion, moves, says):
    moved, sentence = decide(rule, "2", new, champion)
    assert moved is moves
    assert says in sentence


def test_nested_numbers_become_metrics():
    nested = {"base": {"loss": 1, "exact_match": None}, "rows": 3, "by_kind": {"a b": {"base": 0.5}}, "name": "x"}
    assert flat("eval", nested) == {"eval/base/loss": 1.0, "eval/rows": 3.0, "eval/by_kind/a b/base": 0.5}


def test_any_kind_and_file_name_becomes_a_name_that_mlflow_takes():
    from mlflow.utils.validation import _validate_metric_name, _validate_model_version_tag

    for name in ("Q&A", "what?", "a/../b", "rows (1).json", "ü", "..", ""):
        _validate_metric_name(f"eval/by_kind/{plain(name)}/base")
        _validate_model_version_tag(f"data_sha256.{plain(name)}", "x")
