"""Maps bytes to characters as in GPT-2's byte-level BPE vocabulary (openai/gpt-2, encoder.py)."""


def byte_characters() -> dict[int, str]:
    """Return GPT-2's character for each byte.

    A printable byte maps to the character with the same code point. The remaining bytes map, in ascending order, to the
    characters with code points from 256 upward.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    characters = {byte: chr(byte) for byte in printable}
    rest = [byte for byte in range(256) if byte not in characters]
    return characters | {byte: chr(256 + number) for number, byte in enumerate(rest)}
