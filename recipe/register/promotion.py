"""Decides whether a new version becomes the champion of its registered model."""

ALIAS = "champion"


def decide(
    rule: str, version: str, tags: dict[str, str], champion: tuple[str, dict[str, str]] | None
) -> tuple[bool, str]:
    """Return whether the `champion` alias moves to `version`, and a sentence that gives the reason."""
    if rule == "never":
        return (
            False,
            f"version {version} is registered, but the {ALIAS} alias does not move, because registry.promote is never",
        )
    if champion is None:
        return True, f"version {version} is the first {ALIAS}"
    number, champion_tags = champion
    if number == version:
        return False, f"version {version} is already the {ALIAS}"
    if rule == "always":
        return (
            True,
            f"version {version} is now the {ALIAS}, replacing version {number}, because registry.promote is always",
        )
    for tag, difference in (
        ("validation_sha256", "different validation rows, tokens or completion masks"),
        ("tokenizer_sha256", "a different tokenizer"),
    ):
        if tags[tag] != champion_tags.get(tag):
            return False, (
                f"version {number} stays the {ALIAS}: version {version} was evaluated with {difference}, so the "
                "validation losses can't be compared. To move the alias anyway, set registry.promote to always"
            )
    new, old = float(tags["validation_loss"]), float(champion_tags["validation_loss"])
    if new < old:
        return (
            True,
            f"version {version} is now the {ALIAS}: validation loss {new:.4f} against {old:.4f} for version {number}",
        )
    return (
        False,
        f"version {number} stays the {ALIAS}: validation loss {old:.4f} against {new:.4f} for version {version}",
    )
