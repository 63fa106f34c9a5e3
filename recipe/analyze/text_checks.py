"""What may be wrong with a row's text: odd characters, placeholders, answers that look cut off, personal data.

    flaws("What is 1 + 1?", "It is two, and")    # ["answers that end in mid-sentence"]

Each check is a guess by the look of the text, made to be looked at, not to drop rows by. None looks a thing up.
"""

import re
from collections import Counter
from functools import cache

# E-mail after RFC 5322's plain form, phone numbers as E.164 and the North American plan write them, keys in the forms
# that their makers document. Names under example.com and its kin (RFC 2606) and 555 numbers (fiction) are nobody's.
# A local part has at most 64 characters (RFC 5321), which also keeps the search linear.
EMAIL = re.compile(
    r"(?<![\w.%+-])[\w.%+-]{1,64}@(?!(?:[\w-]+\.)*(?i:example\.(?:com|net|org))\b)(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}\b"
)
PHONE = re.compile(
    r"(?<![\w.+/-])(?:\+(?!1[ .-]?\(?555)(?=(?:\D{0,2}\d){8})[1-9]\d{0,2}(?:[ .-]?\(?\d{2,4}\)?){2,5}"
    r"|\((?!555)\d{3}\) ?(?!555)\d{3}[-. ]\d{4}|(?!555)\d{3}([-.])(?!555)\d{3}\1\d{4})(?![\w-])"
)
KEY = re.compile(
    r"\bAKIA[0-9A-Z]{16}\b|\bgh[oprsu]_[A-Za-z0-9]{36}\b|\bgithub_pat_\w{22,}|\bsk-[\w-]{20,}|\bAIza[\w-]{35}"
    r"|\bhf_[A-Za-z]{34}\b|\bxox[abprs]-[\w-]{10,}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"
)
KEY_MARKS = ("AKIA", "gh", "sk-", "AIza", "hf_", "xox", "PRIVATE KEY", "eyJ")  # one stands in every key
PHONE_DIGITS = 8  # a text of fewer holds no number
PERSONAL = {"e-mail addresses": EMAIL, "phone numbers": PHONE, "keys or tokens": KEY}

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\ufeff]")  # joiners (200c, 200d) have uses
PRIVATE = re.compile("[\ue000-\uf8ff]")
ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#\d{2,5}|#x[0-9a-f]{2,4});", re.IGNORECASE)
PLACEHOLDER = re.compile(r"<? ?no[ _-]?(?:input|output) ?>?\.?|n/?a|nan|null", re.IGNORECASE)

OPEN_END = re.compile(r"(?:[,;(\[{]|\s[-–—])$")
SENTENCE_END = re.compile(r"[.!?。！？][\"'”’)\]]*\s")
LIST_ITEM = re.compile(r"\s*(?:[-*•+#|>]|\d+[.)]|\w+:)")
LAST_WORDS = 6  # a last line of fewer is a name, a title, a signature; one without a full stop may be a style


def flaws(question: str, answer: str) -> list[str]:
    """What a row's texts look guilty of, by the names that the report has."""
    both = f"{question}\n{answer}"
    found = [name for name, pattern in PERSONAL.items() if _may_match(name, both) and pattern.search(both)]
    found += odd_characters(both)
    if PLACEHOLDER.fullmatch(answer.strip()):
        found.append("placeholders for an answer")
    how = cut_off(answer)
    return [*found, how] if how else found


def mask_personal_data(text: str) -> str:
    """The text with its personal data replaced by what it is: `[e-mail addresses]`."""
    for name, pattern in PERSONAL.items():
        if _may_match(name, text):
            text = pattern.sub(f"[{name}]", text)
    return text


def _may_match(name: str, text: str) -> bool:
    """A quick look that spares most texts the slow patterns."""
    if name == "e-mail addresses":
        return "@" in text
    if name == "phone numbers":
        return sum(map(text.count, "0123456789")) >= PHONE_DIGITS
    return any(mark in text for mark in KEY_MARKS)


def odd_characters(text: str) -> list[str]:
    """Characters that no one typed: controls, invisible ones, what a wrong decoding left behind, HTML's entities."""
    found = ["HTML entities"] if "&" in text and ENTITY.search(text) else []
    if CONTROL.search(text):
        found.append("control characters")
    if text.isascii():
        return found
    from ftfy.badness import is_bad

    if "\ufffd" in text:
        found.append("replacement characters (U+FFFD)")
    if INVISIBLE.search(text):
        found.append("invisible characters")
    if PRIVATE.search(text):
        found.append("private-use characters")
    if is_bad(text):
        found.append("wrongly decoded texts")
    return found


def cut_off(answer: str) -> str | None:
    """How an answer seems to lack its end, or None. Short answers, lists and code have ends of their own."""
    text = answer.rstrip()
    if text.count("```") % 2:
        return "answers that leave code open"
    if OPEN_END.search(text):
        return "answers that end on a comma, dash or bracket"
    last = text.rsplit("\n", 1)[-1]
    whole = SENTENCE_END.search(last) and text[-1:].isalpha() and len(last.split()) >= LAST_WORDS
    return "answers that end in mid-sentence" if whole and not LIST_ITEM.match(last) else None


@cache
def _script(char: str) -> str:
    from fontTools.unicodedata import script, script_name

    return str(script_name(script(char))) if char.isalpha() else ""


def script(text: str) -> str:
    """The script that most of a text's letters are of (Unicode's Script property), or `none`."""
    if text.isascii():
        return "Latin" if any(map(str.isalpha, text)) else "none"
    letters: Counter[str] = Counter()
    for char, count in Counter(text).items():
        letters[_script(char)] += count
    del letters[""]
    return max(sorted(letters), key=letters.__getitem__, default="none")
