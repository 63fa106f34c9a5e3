import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipe.analyze.text_checks import cut_off, flaws, mask_personal_data, odd_characters, script

NONE = [
    "Write to alice@example.com, or to bob@mail.example.org.",
    "Call (555) 123-4567 or 212-555-0199.",
    "In 1999-2003 it sold 12,345,678 copies; 3.14159265358979; 192.168.100.200",
    "Order 1234-5678, ISBN 978-3-16-148410-0",
    "the key is sk-short, AKIA is a prefix, and ghp_ too",
    "naïve café, Ünïcödé, 😀 👩‍👩‍👧, “quotes” – dashes… 10 €",
    "می‌خواهم",  # a zero-width non-joiner that Persian needs
    "R&D, AT&T; a && b",
    "Call +1 555 123 4567 or +1 (555) 123-4567, or write to me@Example.COM",
    "The sum is +12345 of 99999; it grew by +1500000, and 2 +10 20 30 = 62 and 100",
]


@pytest.mark.parametrize("text", NONE)
def test_what_is_right_is_left_alone(text):
    assert flaws(text, "Yes.") == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Write to jane.doe+x@mail.co.uk!", "e-mail addresses"),
        ("Call (212) 867-5309 now", "phone numbers"),
        ("tel 212-867-5309", "phone numbers"),
        ("+44 20 7946 0958", "phone numbers"),
        ("+4930901820", "phone numbers"),
        ("AKIAIOSFODNN7EXAMPLE", "keys or tokens"),
        ("token ghp_" + "a1B2" * 9, "keys or tokens"),
        ("OPENAI_API_KEY=sk-proj-" + "x" * 40, "keys or tokens"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMII", "keys or tokens"),
        ("Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N", "keys or tokens"),
        ("bell\x07", "control characters"),
        ("zero\u200bwidth", "invisible characters"),
        ("lost \ufffd", "replacement characters (U+FFFD)"),
        ("\ue000", "private-use characters"),
        ("donâ€™t", "wrongly decoded texts"),
        ("Tom &amp; Jerry &#39;", "HTML entities"),
    ],
)
def test_what_is_odd_is_named(text, found):
    assert flaws(text, "Yes.") == [found] and flaws("?", text + " .")[0] == found


def test_personal_data_is_masked():
    text = "I am jane.doe+x@mail.co.uk, (212) 867-5309; ghp_" + "a1B2" * 9
    assert mask_personal_data(text) == "I am [e-mail addresses], [phone numbers]; [keys or tokens]"
    assert mask_personal_data("1 + 1 = 2") == "1 + 1 = 2"


@pytest.mark.parametrize("text", ["%E3" * 200_000 + " @", " " * 600_000 + "yes", "+1 " * 200_000, "(212) " * 100_000])
def test_a_very_long_text_takes_no_longer_than_its_length(text):
    assert "e-mail addresses" not in flaws("", text)  # a quadratic search takes minutes


@pytest.mark.parametrize("answer", ["<noinput>", "No output.", "N/A", " nan "])
def test_a_placeholder_is_no_answer(answer):
    assert flaws("What?", answer) == ["placeholders for an answer"]


@pytest.mark.parametrize(
    ("answer", "how"),
    [
        ("First mix it well. Then heat the pan over a low flame and", "answers that end in mid-sentence"),
        ("The colours are red, green,", "answers that end on a comma, dash or bracket"),
        ("Here you go (", "answers that end on a comma, dash or bracket"),
        ("```python\nprint(1)", "answers that leave code open"),
        ("42", None),
        ("a short one without a stop", None),
        ("So he has 12 + 30 = 42 apples in all", None),  # a style: the whole answer is one sentence
        ("Steps. They are:\n- mix the flour and the water in a bowl", None),
        ("It was said.\nSincerely, Jane", None),
        ("```\nx\n```", None),
        ("C++", None),
        ("Done. That was all there was to it!", None),
    ],
)
def test_an_answer_without_its_end_is_seen(answer, how):
    assert cut_off(answer) == how


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Hello", "Latin"), ("Grüße", "Latin"), ("Привет, world", "Cyrillic"), ("你好", "Han"), ("12 + 30 = ?", "none"),
        ("नमस्ते", "Devanagari"), ("…", "none"), ("", "none"),
    ],
)  # fmt: skip
def test_the_script_is_that_of_most_letters(text, name):
    assert script(text) == name


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_is_looked_at_without_an_error(question, answer):
    assert flaws(question, answer) == flaws(question, answer)
    assert odd_characters(question + answer) is not None and script(question)
