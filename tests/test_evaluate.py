import json

import pytest
from conftest import evaluate_in, no_progress, plain_base, toy_rows
from hypothesis import given
from hypothesis import strategies as st

from recipe.core.errors import DataError
from recipe.core.io import read_json, sha256_tree, write_json
from recipe.evaluate.answers import chrf, compared_rows
from recipe.evaluate.score import batches, score
from recipe.model import chunked_loss
from recipe.report.comparison import ScoredRow, headline, overall
from recipe.report.row_scores import read_row_scores
from recipe.tokens.packing import collate, read_sequences


def groups_in(folder):
    return json.loads((folder / "report" / "groups.json").read_text())


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 200))
def test_every_row_is_in_exactly_one_batch_and_batches_fit_the_limit(lengths, batch_tokens):
    groups = batches(lengths, batch_tokens)
    assert sorted(index for batch in groups for index in batch) == list(range(len(lengths)))
    for batch in groups:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= batch_tokens


def with_adapter(model):
    """A PEFT model with a new adapter, which changes nothing."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")).eval()


@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
def test_scores_in_pieces_equal_scores_of_whole_rows(family, prepared, fetched_base, monkeypatch):
    """Gemma 2 applies a soft cap to the logits of its head."""
    import torch
    import transformers

    folder = prepared(toy_rows(40))
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = getattr(transformers, f"{family}Config")(vocab_size=800, num_key_value_heads=2, head_dim=8, **sizes)
    torch.manual_seed(0)
    model = with_adapter(transformers.AutoModelForCausalLM.from_config(config))
    rows = read_sequences(folder / "validation.arrow")
    whole = score(model, rows, 0, 500, no_progress)
    largest = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: largest.append(output.numel()))
    monkeypatch.setitem(chunked_loss.CHUNK, "cpu", 800 * 3)
    pieces = score(model, rows, 0, 500, no_progress)
    assert max(largest[2:]) <= 800 * 3  # the first two calls compare the logits of the model and of its head
    for (loss, *counts), (other_loss, *other_counts) in zip(whole, pieces, strict=True):
        assert counts == other_counts and loss == pytest.approx(other_loss, rel=1e-5)


def test_batched_scores_equal_those_of_single_rows(prepared, tiny_base, fetched_base):
    folder = prepared(toy_rows(40))
    model = with_adapter(plain_base(tiny_base, 800))
    rows = read_sequences(folder / "validation.arrow")
    for row, (loss, right, count) in zip(rows, score(model, rows, 0, 500, no_progress), strict=True):
        batch = collate([row], 0)
        labels = batch["labels"][0, 1:]
        logits = model(input_ids=batch["input_ids"]).logits[0, :-1]
        in_loss = labels != -100
        assert count == int(in_loss.sum())
        expected = -logits.log_softmax(-1)[in_loss, labels[in_loss]].sum().item()
        assert loss == pytest.approx(expected, rel=1e-4)
        assert right == int((logits.argmax(-1) == labels)[in_loss].sum())


def test_compared_rows_have_the_scores_of_both_variants_and_matches_if_answered():
    scores = {"base": [(2.0, 1, 4), (3.0, 0, 2)], "adapter": [(1.0, 3, 4), (2.5, 1, 2)]}
    answered = {1: {"base_matches": False, "adapter_matches": True, "base_chrf": 20.0, "adapter_chrf": 100.0}}
    assert compared_rows([9, 7], ["a", ""], scores, answered) == [
        ScoredRow("a", 9, 4, (2.0, 1.0), (1, 3), None),
        ScoredRow("", 7, 2, (3.0, 2.5), (0, 1), (False, True), (20.0, 100.0)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("adapter_loss", "verdict", "difference"),
    [
        (1.0, "is better", "(1.000 lower, 95% interval 0.900 to 1.100)"),
        (2.0, "is not better", "(no difference, 95% interval -0.100 to 0.100)"),
        (3.0, "is not better", "(1.000 higher, 95% interval 0.900 to 1.100)"),
    ],
)
def test_headline_says_whether_the_adapter_is_better(adapter_loss, verdict, difference, tmp_path):
    gain = {"loss": 2.0 - adapter_loss, "loss_low": 1.9 - adapter_loss, "loss_high": 2.1 - adapter_loss}
    results = {"base": {"loss": 2.0, "exact_match": 0.0}, "adapter": {"loss": adapter_loss, "exact_match": 0.5}}
    results["difference"] = gain
    assert headline(results).startswith(f"The adapter {verdict} than its base")
    assert difference in headline(results)
    results["adapter"]["exact_match"] = None
    assert "answers" not in headline(results)
    del results["difference"]
    write_json(tmp_path / "evaluate.json", results)
    with pytest.raises(DataError, match=r"evaluate.json has no key 'difference', .*different version.*Run `dvc repro`"):
        headline(read_json(tmp_path / "evaluate.json"))


def test_stage_scores_base_and_adapter_and_is_reproducible(trained, fetched_base):
    folder = trained(num_epochs=4)
    results = evaluate_in(folder, fetched_base)
    assert results == json.loads((folder / "evaluate.json").read_text())
    measures = {"loss", "perplexity", "token_accuracy", "exact_match", "chrf"}
    assert set(results["base"]) == set(results["adapter"]) == measures
    assert results["adapter"]["loss"] < results["base"]["loss"]
    gain = results["difference"]
    assert 0 < gain["loss_low"] < gain["loss"] < gain["loss_high"]
    assert gain["loss"] == pytest.approx(results["base"]["loss"] - results["adapter"]["loss"], abs=2e-6)
    groups = groups_in(folder)
    for name in ("loss_by_length", "token_accuracy_by_length", "exact_match_by_length"):
        num_rows = results["prompts" if name.startswith("exact") else "rows"]
        assert sum(group["rows"] for group in groups[name].values()) == num_rows
    generations = [json.loads(line) for line in (folder / "report" / "generations.jsonl").read_text().splitlines()]
    assert len(generations) == results["prompts"] == 4
    assert headline(results) in (folder / "report" / "index.html").read_text()
    [*rows] = read_row_scores(folder / "report" / "rows.csv")["validation"]
    assert len(rows) == results["rows"] and sum(row.matches is not None for row in rows) == results["prompts"]
    assert overall(rows) == {name: value for name, value in results.items() if isinstance(value, dict)}
    first = sha256_tree(folder / "report"), (folder / "evaluate.json").read_bytes()
    evaluate_in(folder, fetched_base)
    assert (sha256_tree(folder / "report"), (folder / "evaluate.json").read_bytes()) == first


def test_exact_match_is_omitted_without_prompts(trained, fetched_base):
    folder = trained()
    results, groups = evaluate_in(folder, fetched_base, max_generations=0), groups_in(folder)
    assert groups["exact_match_by_category"] == groups["exact_match_by_length"] == groups["loss_by_category"] == {}
    assert groups["loss_by_length"]
    assert results["adapter"]["exact_match"] is None and "exact_match" not in results["difference"]


def test_exact_match_requires_the_complete_answer(trained, fetched_base, monkeypatch):
    import recipe.evaluate.answers

    folder = trained()
    references = [
        json.loads(line)["completion"] for line in (folder / "prepared" / "validation.jsonl").read_text().splitlines()
    ]
    answers = [references[0], *(f"{answer} and more" for answer in references[1:])]
    monkeypatch.setattr(recipe.evaluate.answers, "generate", lambda *_: answers)
    results = evaluate_in(folder, fetched_base, max_generations=len(references))
    assert results["adapter"]["exact_match"] == pytest.approx(1 / len(references), abs=1e-6)


def test_chrf_measures_the_similarity_of_an_answer_and_its_reference():
    references = ["The cat sat on the mat.", "The cat sat on the mat.", "The cat sat on the mat.", "", "x"]
    answers = ["The cat sat on the mat.", "The cat sat on a mat.", "Dogs run.", "", ""]
    same, near, far, empty, missing = chrf(answers, references)
    assert (same, empty, missing) == (100.0, 100.0, 0.0) and 100 > near > 60 > 20 > far
    # Computed by hand: of the 1-grams and 2-grams of `ab` and `abc`, precision 1 and 1, recall 2/3 and 1/2. sacrebleu
    # leaves out the n-grams that the answer is too short for.
    precision, recall = 1.0, (2 / 3 + 1 / 2) / 2
    assert chrf(["ab"], ["abc"]) == [pytest.approx(100 * 5 * precision * recall / (4 * precision + recall), abs=1e-3)]
