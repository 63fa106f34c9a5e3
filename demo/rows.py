"""Writes the demo's rows: small language tasks with one right answer each, in Alpaca's columns.

Reads nothing but the word lists and a seed. Makes `demo/rows/train.jsonl` and `demo/rows/validation.jsonl`:
`instruction`, `input`, `output` and `category`. A validation row is made of held-out words and number pairs alone, so
that a right answer there can't be recalled from a training row.

    python -m demo.rows            # writes both files again, byte for byte
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
    """The words and numbers that a row may use."""

    names: list[str]
    cities: list[str]
    nouns: list[str]
    verbs: list[str]
    held: bool

    def mixed(self, mix: Callable[[list[str]], list[str]]) -> "Words":
        """Training words with each list passed through `mix`; names and cities come back with a capital."""

        def capital(words: list[str]) -> list[str]:
            return [word[:1].upper() + word[1:] for word in words]

        return Words(
            capital(mix(self.names)), capital(mix(self.cities)), mix(self.nouns), mix(self.verbs), held=False
        )  # fmt: skip

    def numbers(self, rng: Random, count: int) -> list[int]:
        """`count` different numbers below 100 whose set is held out, or is not, as `held` says."""
        while True:
            numbers = rng.sample(range(1, 100), count)
            digest = hashlib.sha256(repr(sorted(numbers)).encode()).digest()
            if (digest[0] % HELD_OUT_SHARE == 0) == self.held:
                return numbers


@dataclass(frozen=True)
class Task:
    """One example: what is asked about (`query`, may be empty), the text it is asked of, and the answer."""

    query: str
    text: str
    answer: str


def words_of(*, held: bool) -> Words:
    """The held-out words, or all the others."""
    return Words(pool(NAMES, held=held), pool(CITIES, held=held), pool(NOUNS, held=held), pool(VERBS, held=held), held)


def training_words(rng: Random) -> Words:
    """All words that may be trained on, and INVENTED times as many invented ones, so that no word comes often."""
    return words_of(held=False).mixed(
        lambda words: list(dict.fromkeys(words + [invented(rng) for _ in range(INVENTED * len(words))]))
    )


def reverse(rng: Random, words: Words) -> Task:
    """Two to five words, from the last to the first."""
    items = rng.sample(words.nouns, rng.randint(2, 5))
    return Task("", ", ".join(items), ", ".join(reversed(items)))


def last(rng: Random, words: Words) -> Task:
    """The last of three to seven words."""
    items = rng.sample(words.nouns, rng.randint(3, 7))
    return Task("", ", ".join(items), items[-1])


def repeat(rng: Random, words: Words) -> Task:
    """A word three times."""
    noun = rng.choice(words.nouns)
    return Task("", noun, " ".join([noun] * 3))


def unique(rng: Random, words: Words) -> Task:
    """A list without the word that stands in it twice."""
    items = rng.sample(words.nouns, rng.randint(2, 4))
    return Task("", ", ".join([*items, rng.choice(items)]), ", ".join(items))


def replace(rng: Random, words: Words) -> Task:
    """A sentence with one word put in place of another."""
    old, new, other = rng.sample(words.nouns, 3)
    first, second = rng.sample([old, other], 2)
    text = f"I see a {first} and a {second}."
    return Task(f"{old} by {new}", text, text.replace(f" {old}", f" {new}"))


def plurals(rng: Random, words: Words) -> Task:
    """The plural of a noun."""
    noun = rng.choice(words.nouns)
    return Task("", noun, plural(noun))


def past_tense(rng: Random, words: Words) -> Task:
    """What someone will do, as done."""
    verb = rng.choice([verb for verb in words.verbs if verb not in IRREGULAR])
    name = rng.choice(words.names)
    return Task("", f"{name} will {verb}.", f"{name} {past(verb)}.")


def question(rng: Random, words: Words) -> Task:
    """A statement as a question."""
    name, noun = rng.choice(words.names), rng.choice(words.nouns)
    verb = rng.choice(["like", "need", "want", "see"])
    return Task("", f"{name} {verb}s the {noun}.", f"Does {name} {verb} the {noun}?")


def greeting(rng: Random, words: Words) -> Task:
    """A greeting to someone from a city."""
    name, city = rng.choice(words.names), rng.choice(words.cities)
    return Task("", f"{name} from {city}", f"Hello {name}, how is the weather in {city}?")


def record(rng: Random, words: Words) -> Task:
    """A sentence as a JSON object."""
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
    """A passage of a sentence a person; most are short, a few run on for many (a Pareto tail)."""
    people = rng.sample(words.names, min(len(words.names), 1 + int(2 * rng.paretovariate(1.1))))
    homes = {name: rng.choice(words.cities) for name in people}
    name = rng.choice(people)
    return Task(name, " ".join(f"{person} lives in {city}." for person, city in homes.items()), homes[name])


# Of each category: how a row asks for it. `{text}` in the instruction leaves the input empty.
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
    """One row of a category in Alpaca's columns."""
    make, phrasings = CATEGORIES[category]
    task, phrasing = make(rng, words), rng.choice(phrasings)
    return {
        "instruction": phrasing.format(query=task.query, text=task.text),
        "input": "" if "{text}" in phrasing else task.text,
        "output": task.answer,
        "category": category,
    }


def rows(count: int, seed: int, words: Words) -> list[dict[str, str]]:
    """`count` rows, no prompt twice, the categories in turn."""
    rng = Random(seed)
    seen: set[tuple[str, str]] = set()
    made: list[dict[str, str]] = []
    categories = list(CATEGORIES)
    attempts = 0
    while len(made) < count:
        candidate = row(categories[attempts % len(categories)], rng, words)
        attempts += 1
        prompt = (candidate["instruction"], candidate["input"])
        if prompt not in seen:
            seen.add(prompt)
            made.append(candidate)
    return made


def write(folder: Path) -> None:
    """Write both files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = {
        "train": (NUM_TRAIN_ROWS, SEED, training_words(Random(SEED))),
        "validation": (NUM_VALIDATION_ROWS, SEED + 1, words_of(held=True)),
    }
    for split, (count, seed, words) in splits.items():
        made = rows(count, seed, words)
        text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in made)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write(Path(__file__).parent / "rows")
