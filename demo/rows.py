"""Writes the demo's rows: small language tasks with one correct answer each, in Alpaca's columns.

Needs only the word lists and a seed. Writes `demo/rows/train.jsonl` and `demo/rows/validation.jsonl` with the keys
`instruction`, `input`, `output` and `category`. Validation rows use only held-out words and sets of numbers, which
never appear in training, so correct answers cannot come from memorization.

    python -m demo.rows            # rewrites both files with identical bytes
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from demo.words import CITIES, HELD_OUT_SHARE, IRREGULAR, NAMES, NOUNS, VERBS, invented, past, plural, pool

SEED = 20261124
NUM_TRAIN_ROWS = 4_300
NUM_VALIDATION_ROWS = 450
INVENTED = 4


@dataclass(frozen=True)
class Words:
    """The words that a row may use; `held` says whether they are held out."""

    names: list[str]
    cities: list[str]
    nouns: list[str]
    verbs: list[str]
    held: bool

    def mixed(self, mix: Callable[[list[str]], list[str]]) -> "Words":
        """Training words with `mix` applied to each list. Names and cities are capitalized."""

        def capitalized(words: list[str]) -> list[str]:
            return [word[:1].upper() + word[1:] for word in words]

        return Words(
            capitalized(mix(self.names)), capitalized(mix(self.cities)), mix(self.nouns), mix(self.verbs), held=False
        )  # fmt: skip

    def numbers(self, rng: Random, count: int) -> list[int]:
        """`count` different numbers from 1 to 99. The set as a whole is held out if and only if `held` is true."""
        while True:
            numbers = rng.sample(range(1, 100), count)
            digest = hashlib.sha256(repr(sorted(numbers)).encode()).digest()
            if (digest[0] % HELD_OUT_SHARE == 0) == self.held:
                return numbers


@dataclass(frozen=True)
class Task:
    """An example: what is asked for (`query`, may be empty), the text it refers to, and the answer."""

    query: str
    text: str
    answer: str


def words_of(*, held: bool) -> Words:
    """The held-out words, or all other words."""
    return Words(pool(NAMES, held=held), pool(CITIES, held=held), pool(NOUNS, held=held), pool(VERBS, held=held), held)


def training_words(rng: Random) -> Words:
    """All training words, and INVENTED times as many invented words, so that no word is frequent."""
    return words_of(held=False).mixed(
        lambda words: list(dict.fromkeys(words + [invented(rng) for _ in range(INVENTED * len(words))]))
    )


def reverse(rng: Random, words: Words) -> Task:
    """Two to five words in reverse order."""
    items = rng.sample(words.nouns, rng.randint(2, 5))
    return Task("", ", ".join(items), ", ".join(reversed(items)))


def last(rng: Random, words: Words) -> Task:
    """The last word of a list of three to seven words."""
    items = rng.sample(words.nouns, rng.randint(3, 7))
    return Task("", ", ".join(items), items[-1])


def repeat(rng: Random, words: Words) -> Task:
    """A word, repeated three times."""
    noun = rng.choice(words.nouns)
    return Task("", noun, " ".join([noun] * 3))


def unique(rng: Random, words: Words) -> Task:
    """A list with the second occurrence of a word removed."""
    items = rng.sample(words.nouns, rng.randint(2, 4))
    return Task("", ", ".join([*items, rng.choice(items)]), ", ".join(items))


def replace(rng: Random, words: Words) -> Task:
    """A sentence with one word replaced by another."""
    old, new, other = rng.sample(words.nouns, 3)
    first, second = rng.sample([old, other], 2)
    text = f"I see a {first} and a {second}."
    return Task(f"{old} by {new}", text, text.replace(f" {old}", f" {new}"))


def plurals(rng: Random, words: Words) -> Task:
    """The plural of a noun."""
    noun = rng.choice(words.nouns)
    return Task("", noun, plural(noun))


def past_tense(rng: Random, words: Words) -> Task:
    """A sentence about the future, put into the past tense."""
    verb = rng.choice([verb for verb in words.verbs if verb not in IRREGULAR])
    name = rng.choice(words.names)
    return Task("", f"{name} will {verb}.", f"{name} {past(verb)}.")


def question(rng: Random, words: Words) -> Task:
    """A statement, turned into a question."""
    name, noun = rng.choice(words.names), rng.choice(words.nouns)
    verb = rng.choice(["like", "need", "want", "see"])
    return Task("", f"{name} {verb}s the {noun}.", f"Does {name} {verb} the {noun}?")


def greeting(rng: Random, words: Words) -> Task:
    """A greeting to someone from a city."""
    name, city = rng.choice(words.names), rng.choice(words.cities)
    return Task("", f"{name} from {city}", f"Hello {name}, how is the weather in {city}?")


def record(rng: Random, words: Words) -> Task:
    """A sentence, turned into a JSON object."""
    name, city, noun = rng.choice(words.names), rng.choice(words.cities), rng.choice(words.nouns)
    return Task("", f"{name} from {city} sells a {noun}.", json.dumps({"name": name, "city": city, "item": noun}))


def larger(rng: Random, words: Words) -> Task:
    """The larger of two numbers."""
    numbers = words.numbers(rng, 2)
    return Task("", " and ".join(map(str, numbers)), str(max(numbers)))


def ascending(rng: Random, words: Words) -> Task:
    """Three numbers, sorted."""
    numbers = words.numbers(rng, 3)
    return Task("", ", ".join(map(str, numbers)), ", ".join(map(str, sorted(numbers))))


def add(rng: Random, words: Words) -> Task:
    """The sum of two numbers."""
    numbers = words.numbers(rng, 2)
    return Task("", " + ".join(map(str, numbers)), str(sum(numbers)))


def lookup(rng: Random, words: Words) -> Task:
    """A passage with one sentence per person. Most passages are short, and a few are very long (a Pareto tail)."""
    people = rng.sample(words.names, min(len(words.names), 1 + int(2 * rng.paretovariate(1.1))))
    homes = {name: rng.choice(words.cities) for name in people}
    name = rng.choice(people)
    return Task(name, " ".join(f"{person} lives in {city}." for person, city in homes.items()), homes[name])


# For each category, the function that creates a task, and the instructions. If an instruction contains `{text}`, the
# input is empty.
CATEGORIES: dict[str, tuple[Callable[[Random, Words], Task], list[str]]] = {
    "reverse": (reverse, ["Write the list in reverse order.", "Turn this list around: {text}"]),
    "last": (last, ["What is the last item of the list?", "Name the final item in this list: {text}"]),
    "repeat": (repeat, ["Write the word three times.", 'Say the word "{text}" three times.']),
    "unique": (unique, ["Remove the duplicate from the list.", "One item stands twice. Write each only once."]),
    "replace": (replace, ["Replace {query} in the sentence.", "In the sentence, put another word: {query}."]),
    "plural": (plurals, ["What is the plural of the word?", 'Give the plural form of "{text}".']),
    "past": (past_tense, ["Put the sentence into the past tense.", "Say that it already happened: {text}"]),
    "question": (question, ["Turn the sentence into a question.", "Ask whether this is true: {text}"]),
    "greeting": (greeting, ["Write a greeting for this person.", "Greet {text}, and ask about the weather."]),
    "record": (record, ["Write the facts as JSON.", "Turn this sentence into a JSON object: {text}"]),
    "larger": (larger, ["Which number is larger?", "Which of {text} is the larger number?"]),
    "sort": (ascending, ["Sort the numbers from low to high.", "Put these numbers in order: {text}"]),
    "add": (add, ["What is the sum of the numbers?", "What is {text}?"]),
    "lookup": (lookup, ["Where does {query} live?", "Name the city that {query} lives in."]),
}


def row(category: str, rng: Random, words: Words) -> dict[str, str]:
    """A row of a category, with Alpaca's columns."""
    make, phrasings = CATEGORIES[category]
    task, phrasing = make(rng, words), rng.choice(phrasings)
    return {
        "instruction": phrasing.format(query=task.query, text=task.text),
        "input": "" if "{text}" in phrasing else task.text,
        "output": task.answer,
        "category": category,
    }


def rows(count: int, seed: int, words: Words) -> list[dict[str, str]]:
    """`count` rows with different prompts; the categories take turns."""
    rng = Random(seed)
    seen: set[tuple[str, str]] = set()
    unique_rows: list[dict[str, str]] = []
    categories = list(CATEGORIES)
    attempts = 0
    while len(unique_rows) < count:
        candidate = row(categories[attempts % len(categories)], rng, words)
        attempts += 1
        prompt = (candidate["instruction"], candidate["input"])
        if prompt not in seen:
            seen.add(prompt)
            unique_rows.append(candidate)
    return unique_rows


def write(folder: Path) -> None:
    """Write both files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = {
        "train": (NUM_TRAIN_ROWS, SEED, training_words(Random(SEED))),
        "validation": (NUM_VALIDATION_ROWS, SEED + 1, words_of(held=True)),
    }
    for split, (count, seed, words) in splits.items():
        text = "".join(json.dumps(values, ensure_ascii=False) + "\n" for values in rows(count, seed, words))
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write(Path(__file__).parent / "rows")
