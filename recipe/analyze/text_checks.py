"""Checks the text of a row for unusual characters, placeholders, answers that look truncated, and personal data.

    flaws("What is 1 + 1?", "It is two,")    # ["answers that end on a comma, dash or bracket"]

The checks are heuristics, so inspect the listed rows before you drop any. The checks do not need network access.
"""

import re
from collections import Counter
from functools import cache

# The patterns match e-mail addresses in the plain RFC 5322 form, phone numbers in E.164 or North American Numbering
# Plan notation, and keys in the formats that their issuers document. Addresses under example.com, .net and .org (RFC
# 2606) and North American 555 numbers are ignored, because they are usually placeholders. The part of an address before
# the @ is limited to 64 characters (RFC 5321). This limit also keeps the search time linear.
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
# Every match of KEY contains one of these strings.
KEY_MARKS = ("AKIA", "gh", "sk-", "AIza", "hf_", "xox", "PRIVATE KEY", "eyJ")
PHONE_DIGITS = 8  # a text with fewer digits is not searched for phone numbers
PERSONAL = {"e-mail addresses": EMAIL, "phone numbers": PHONE, "keys or tokens": KEY}

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
# The joiners U+200C and U+200D are not included, because some scripts and emoji need them.
INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
PRIVATE = re.compile("[\ue000-\uf8ff]")
ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#\d{2,5}|#x[0-9a-f]{2,4});", re.IGNORECASE)
PLACEHOLDER = re.compile(r"<? ?no[ _-]?(?:input|output) ?>?\.?|n/?a|nan|null", re.IGNORECASE)

OPEN_END = re.compile(r"(?:[,;(\[{]|\s[-–—])$")
SENTENCE_END = re.compile(r"[.!?。！？][\"'”’)\]]*\s")
LIST_ITEM = re.compile(r"\s*(?:[-*•+#|>]|\d+[.)]|\w+:)")
LAST_WORDS = 6  # if the last line has fewer words, it may be a name, a title or a signature


def flaws(question: str, answer: str) -> list[str]:
    """Return the possible problems in a question and its answer, by the names that the report uses."""
    text = f"{question}\n{answer}"
    names = [name for name, pattern in PERSONAL.items() if _may_match(name, text) and pattern.search(text)]
    names += odd_characters(text)
    if PLACEHOLDER.fullmatch(answer.strip()):
        names.append("placeholders for an answer")
    truncation = cut_off(answer)
    return [*names, truncation] if truncation else names


def mask_personal_data(text: str) -> str:
    """Replace personal data in a text with the type of data, such as `[e-mail addresses]`."""
    for name, pattern in PERSONAL.items():
        if _may_match(name, text):
            text = pattern.sub(f"[{name}]", text)
    return text


def _may_match(name: str, text: str) -> bool:
    """Check quickly whether a pattern might match, so that the slow search can be skipped for most texts."""
    if name == "e-mail addresses":
        return "@" in text
    if name == "phone numbers":
        return sum(map(text.count, "0123456789")) >= PHONE_DIGITS
    return any(mark in text for mark in KEY_MARKS)


def odd_characters(text: str) -> list[str]:
    """Return the types of unusual characters in a text, such as control characters or HTML entities."""
    names = ["HTML entities"] if "&" in text and ENTITY.search(text) else []
    if CONTROL.search(text):
        names.append("control characters")
    if text.isascii():
        return names
    from ftfy.badness import is_bad

    if "\ufffd" in text:
        names.append("replacement characters (U+FFFD)")
    if INVISIBLE.search(text):
        names.append("invisible characters")
    if PRIVATE.search(text):
        names.append("private-use characters")
    if is_bad(text):
        names.append("text decoded with the wrong encoding")
    return names


def cut_off(answer: str) -> str | None:
    """Return the reason why an answer looks truncated, or None if the answer looks complete.

    An answer may end without a period if its last line is short, is a single sentence, or is a list item.
    """
    text = answer.rstrip()
    if text.count("```") % 2:
        return "answers with an unclosed code block"
    if OPEN_END.search(text):
        return "answers that end on a comma, dash or bracket"
    last = text.rsplit("\n", 1)[-1]
    # A single sentence may end without a period, so report the last line only if it also contains a complete sentence.
    unfinished = SENTENCE_END.search(last) and text[-1:].isalpha() and len(last.split()) >= LAST_WORDS
    return "answers that end in mid-sentence" if unfinished and not LIST_ITEM.match(last) else None


@cache
def _script(char: str) -> str:
    from fontTools.unicodedata import script, script_name

    return str(script_name(script(char))) if char.isalpha() else ""


def script(text: str) -> str:
    """Return the most common Unicode script among the letters in a text, or `none` if it contains no letters."""
    if text.isascii():
        return "Latin" if any(map(str.isalpha, text)) else "none"
    letters: Counter[str] = Counter()
    for char, count in Counter(text).items():
        letters[_script(char)] += count
    del letters[""]
    return max(sorted(letters), key=letters.__getitem__, default="none")
