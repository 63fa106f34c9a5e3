"""The demo: its rows match the generator, and correct answers cannot be memorized."""

import json
import re

import numpy as np
import pytest
from conftest import ROOT

from demo.rows import CATEGORIES, write
from demo.words import CITIES, NAMES, NOUNS, VERBS, held_out, past, plural

ROWS = {
    split: [json.loads(line) for line in (ROOT / "demo" / "rows" / f"{split}.jsonl").read_text().splitlines()]
    for split in ("train", "validation")
}


def prompt(row):
    return row["instruction"] + "\n" + row["input"]


def test_the_committed_rows_match_the_generator(tmp_path):
    write(tmp_path)
    for split in ROWS:
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (ROOT / "demo" / "rows" / f"{split}.jsonl").read_bytes()


def test_there_are_thousands_of_rows_in_many_categories_with_a_long_tail_of_lengths():
    assert len(ROWS["train"]) >= 4000 and len(CATEGORIES) >= 8
    assert (
        {row["category"] for row in ROWS["train"]} == {row["category"] for row in ROWS["validation"]} == set(CATEGORIES)
    )
    lengths = [len(prompt(row)) for row in ROWS["train"]]
    assert max(lengths) > 20 * np.median(lengths)


def test_held_out_operands_never_appear_in_training_rows():
    """Neither held-out words nor held-out pairs or triples of numbers."""
    words = {word.lower() for word in (*NAMES, *CITIES, *NOUNS, *VERBS) if held_out(word)}
    forms = words | {plural(word) for word in words} | {past(word) for word in words}
    numbers = set()
    for row in ROWS["train"]:
        text = prompt(row) + " " + row["output"]
        assert not forms & set(re.findall(r"[a-z]+", text.lower())), row
        digits = re.findall(r"\d+", prompt(row))
        if digits:
            numbers.add(tuple(sorted(map(int, digits))))
    for row in ROWS["validation"]:
        digits = re.findall(r"\d+", prompt(row))
        if digits:
            assert tuple(sorted(map(int, digits))) not in numbers
        else:
            operands = set(re.findall(r"[a-z]+", (row["instruction"] + " " + row["input"]).lower()))
            assert forms & operands, row


def test_copying_the_answer_of_the_nearest_training_row_is_correct_for_at_most_a_tenth():
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4))
    train = vectorizer.fit_transform([prompt(row) for row in ROWS["train"]])
    validation = vectorizer.transform([prompt(row) for row in ROWS["validation"]])
    nearest = np.asarray((validation @ train.T).argmax(axis=1)).ravel()
    correct = [
        row["output"] == ROWS["train"][index]["output"] for row, index in zip(ROWS["validation"], nearest, strict=True)
    ]
    assert sum(correct) / len(correct) <= 0.10


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (plural("box"), "boxes"), (plural("berry"), "berries"), (plural("key"), "keys"), (plural("leaf"), "leaves"),
        (plural("torch"), "torches"), (plural("potato"), "potatoes"), (plural("lamp"), "lamps"),
        (past("bake"), "baked"), (past("carry"), "carried"), (past("play"), "played"), (past("stir"), "stirred"),
        (past("mix"), "mixed"), (past("visit"), "visited"),
    ],
)  # fmt: skip
def test_words_are_inflected_correctly(form, expected):
    assert form == expected


def test_the_base_model_is_small_and_has_a_log():
    base = ROOT / "demo" / "base"
    assert sum(file.stat().st_size for file in base.iterdir()) <= 8_000_000
    log = [json.loads(line) for line in (base / "pretrain.log").read_text().splitlines()]
    assert log[0]["parameters"] == 1_967_808 and set(log[-1]["few_shot_accuracy"]) == set(CATEGORIES)


def test_fine_tuning_improves_the_demo_clearly():
    """Checks the committed metrics of the last run, which `dvc repro` reproduces."""
    scores = json.loads((ROOT / "metrics" / "evaluate.json").read_text())
    assert scores["base"]["exact_match"] <= 0.05
    assert scores["adapter"]["exact_match"] >= 0.50
