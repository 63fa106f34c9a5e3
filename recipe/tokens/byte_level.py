"""GPT-2's mapping from bytes to characters, which byte-level BPE vocabularies use (openai/gpt-2, encoder.py)."""


def byte_characters() -> dict[int, str]:
    """GPT-2's character for each byte.

    Printable bytes map to the character with the same code point. The other bytes, in ascending order, map to the
    characters from code point 256 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    characters = {byte: chr(byte) for byte in printable}
    rest = [byte for byte in range(256) if byte not in characters]
    return characters | {byte: chr(256 + number) for number, byte in enumerate(rest)}
