"""The embedded default: its rows are what the generator writes, and a right answer can't be recalled."""

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


def test_the_rows_are_what_the_generator_writes(tmp_path):
    write(tmp_path)
    for split in ROWS:
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (ROOT / "demo" / "rows" / f"{split}.jsonl").read_bytes()


def test_there_are_thousands_of_rows_of_many_categories_with_a_long_tail():
    assert len(ROWS["train"]) >= 4000 and len(CATEGORIES) >= 8
    assert (
        {row["category"] for row in ROWS["train"]} == {row["category"] for row in ROWS["validation"]} == set(CATEGORIES)
    )
    lengths = [len(prompt(row)) for row in ROWS["train"]]
    assert max(lengths) > 20 * np.median(lengths)


def test_no_held_out_operand_stands_in_a_training_row():
    """No held-out word, and no held-out pair or triple of numbers."""
    words = {word.lower() for word in (*NAMES, *CITIES, *NOUNS, *VERBS) if held_out(word)}
    forms = words | {plural(word) for word in words} | {past(word) for word in words}
    numbers = set()
    for row in ROWS["train"]:
        text = prompt(row) + " " + row["output"]
        assert not forms & set(re.findall(r"[a-z]+", text.lower())), row
        found = re.findall(r"\d+", prompt(row))
        if found:
            numbers.add(tuple(sorted(map(int, found))))
    for row in ROWS["validation"]:
        found = re.findall(r"\d+", prompt(row))
        if found:
            assert tuple(sorted(map(int, found))) not in numbers
        else:
            operands = set(re.findall(r"[a-z]+", (row["instruction"] + " " + row["input"]).lower()))
            assert forms & operands, row


def test_answering_with_the_nearest_training_row_is_right_for_a_tenth_at_most():
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4))
    known = vectorizer.fit_transform([prompt(row) for row in ROWS["train"]])
    asked = vectorizer.transform([prompt(row) for row in ROWS["validation"]])
    nearest = np.asarray((asked @ known.T).argmax(axis=1)).ravel()
    right = [
        row["output"] == ROWS["train"][index]["output"] for row, index in zip(ROWS["validation"], nearest, strict=True)
    ]
    assert sum(right) / len(right) <= 0.10


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (plural("box"), "boxes"), (plural("berry"), "berries"), (plural("key"), "keys"), (plural("leaf"), "leaves"),
        (plural("torch"), "torches"), (plural("potato"), "potatoes"), (plural("lamp"), "lamps"),
        (past("bake"), "baked"), (past("carry"), "carried"), (past("play"), "played"), (past("stir"), "stirred"),
        (past("mix"), "mixed"), (past("visit"), "visited"),
    ],
)  # fmt: skip
def test_words_take_their_forms(made, wanted):
    assert made == wanted


def test_the_base_model_is_small_and_has_its_log():
    base = ROOT / "demo" / "base"
    assert sum(file.stat().st_size for file in base.iterdir()) <= 8_000_000
    log = [json.loads(line) for line in (base / "pretrain.log").read_text().splitlines()]
    assert log[0]["parameters"] == 1_967_808 and set(log[-1]["few_shot_accuracy"]) == set(CATEGORIES)


def test_the_default_shows_what_fine_tuning_is_for():
    """The committed numbers of the last run; `dvc repro` checks them again."""
    scores = json.loads((ROOT / "metrics" / "evaluate.json").read_text())
    assert scores["base"]["exact_match"] <= 0.05
    assert scores["adapter"]["exact_match"] >= 0.50
