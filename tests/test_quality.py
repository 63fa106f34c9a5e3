import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipe.analyze.text_checks import cut_off, flaws, mask_personal_data, odd_characters, script

CLEAN = [
    "Write to alice@example.com, or to bob@mail.example.org.",
    "Call (555) 123-4567 or 212-555-0199.",
    "In 1999-2003 it sold 12,345,678 copies; 3.14159265358979; 192.168.100.200",
    "Order 1234-5678, ISBN 978-3-16-148410-0",
    "the key is sk-short, AKIA is a prefix, and ghp_ too",
    "naïve café, Ünïcödé, 😀 👩‍👩‍👧, “quotes” – dashes… 10 €",
    "می‌خواهم",  # Persian requires the zero-width non-joiner
    "R&D, AT&T; a && b",
    "Call +1 555 123 4567 or +1 (555) 123-4567, or write to me@Example.COM",
    "The sum is +12345 of 99999; it grew by +1500000, and 2 +10 20 30 = 62 and 100",
]
FLAWS = {
    "e-mail addresses", "phone numbers", "keys or tokens", "HTML entities", "control characters",
    "replacement characters (U+FFFD)", "invisible characters", "private-use characters",
    "text decoded with the wrong encoding",
    "placeholders for an answer", "answers with an unclosed code block", "answers that end on a comma, dash or bracket",
    "answers that end in mid-sentence",
}  # fmt: skip


@pytest.mark.parametrize("text", CLEAN)
def test_clean_text_has_no_flaws(text):
    assert flaws(text, "Yes.") == []


@pytest.mark.parametrize(
    ("text", "flaw"),
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
        ("donâ€™t", "text decoded with the wrong encoding"),
        ("Tom &amp; Jerry &#39;", "HTML entities"),
    ],
)
def test_flaw_is_named_in_question_and_answer(text, flaw):
    assert flaws(text, "Yes.") == [flaw] and flaws("?", text + " .")[0] == flaw


def test_personal_data_is_masked():
    text = "I am jane.doe+x@mail.co.uk, (212) 867-5309; ghp_" + "a1B2" * 9
    assert mask_personal_data(text) == "I am [e-mail addresses], [phone numbers]; [keys or tokens]"
    assert mask_personal_data("1 + 1 = 2") == "1 + 1 = 2"


@pytest.mark.parametrize("text", ["%E3" * 200_000 + " @", " " * 600_000 + "yes", "+1 " * 200_000, "(212) " * 100_000])
def test_time_is_linear_in_the_length_of_the_text(text):
    assert "e-mail addresses" not in flaws("", text)  # a quadratic search takes minutes


@pytest.mark.parametrize("answer", ["<noinput>", "No output.", "N/A", " nan "])
def test_placeholder_answer_is_a_flaw(answer):
    assert flaws("What?", answer) == ["placeholders for an answer"]


@pytest.mark.parametrize(
    ("answer", "flaw"),
    [
        ("First mix it well. Then heat the pan over a low flame and", "answers that end in mid-sentence"),
        ("The colours are red, green,", "answers that end on a comma, dash or bracket"),
        ("Here you go (", "answers that end on a comma, dash or bracket"),
        ("```python\nprint(1)", "answers with an unclosed code block"),
        ("42", None),
        ("a short one without a stop", None),
        ("So he has 12 + 30 = 42 apples in all", None),  # a single sentence without a period is a matter of style
        ("Steps. They are:\n- mix the flour and the water in a bowl", None),
        ("It was said.\nSincerely, Jane", None),
        ("```\nx\n```", None),
        ("C++", None),
        ("Done. That was all there was to it!", None),
    ],
)
def test_truncated_answer_is_detected(answer, flaw):
    assert cut_off(answer) == flaw


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Hello", "Latin"), ("Grüße", "Latin"), ("Привет, world", "Cyrillic"), ("你好", "Han"), ("12 + 30 = ?", "none"),
        ("नमस्ते", "Devanagari"), ("…", "none"), ("", "none"),
    ],
)  # fmt: skip
def test_script_is_that_of_most_letters(text, name):
    assert script(text) == name


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_gives_known_flaws_and_a_script_if_it_has_letters(question, answer):
    names, text = flaws(question, answer), f"{question}\n{answer}"
    assert len(names) == len(set(names)) and set(names) <= FLAWS
    assert set(odd_characters(text)) <= set(names)
    assert (cut_off(answer) in names) == (cut_off(answer) is not None)
    assert (script(text) == "none") == (not any(map(str.isalpha, text)))
    assert script(text) == script(text[::-1])
