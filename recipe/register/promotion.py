"""Decides whether a new version becomes the champion of its registered model."""

ALIAS = "champion"


def decide(
    rule: str, version: str, tags: dict[str, str], champion: tuple[str, dict[str, str]] | None
) -> tuple[bool, str]:
    """Whether the alias moves to `version`, and a sentence that gives the reason."""
    if rule == "never":
        return (
            False,
            f"version {version} is registered; the alias {ALIAS} does not move, because registry.promote is never",
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
                "two losses can't be compared. Set registry.promote to always to move the alias"
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
