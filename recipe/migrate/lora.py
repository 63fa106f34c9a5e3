"""Converts the LoRA and quantization keys that several tools share."""

from recipe.migrate.migration import Migration, is_on, shown


def rank_stabilized(migration: Migration, key: str) -> None:
    """Convert rsLoRA's alpha, so that alpha / r here equals rsLoRA's scale of alpha / sqrt(r) (arXiv 2312.03732)."""
    if is_on(migration.pop(key, False)):
        alpha = migration.settings["lora.alpha"]
        scaled = alpha * migration.settings["lora.r"] ** 0.5
        migration.replace("lora.alpha", scaled)
        migration.differ(
            key, f"the scale is alpha / r here, not alpha / sqrt(r). lora.alpha is {scaled:g} instead of {alpha:g}, "
            "which gives the same scale"
        )  # fmt: skip


def quantization(migration: Migration, bits: int | None, source: str) -> None:
    """Set the quantization of the base model."""
    names = {None: "none", 8: "int8", 4: "nf4"}
    if bits not in names:
        migration.choose("train.quantization", "none", f"{source}: only 8 and 4 bits are available")
    else:
        migration.put("train.quantization", names[bits], source)


def load_in_bits(migration: Migration) -> int | None:
    """Convert load_in_4bit and load_in_8bit, and return the number of bits, or None if neither is on."""
    in_4, in_8 = (is_on(migration.pop(f"load_in_{bits}bit", False)) for bits in (4, 8))
    bits = 4 if in_4 else 8 if in_8 else None
    quantization(migration, bits, f"load_in_{bits}bit: true" if bits else "no load_in_4bit or load_in_8bit")
    return bits


def targets(migration: Migration, key: str, value: list[str] | str) -> None:
    """Set the target modules from a list of names, from a single name, or from `all-linear` or `all`."""
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else [str(name) for name in value]
    if names in (["all"], ["all-linear"]):
        migration.put("lora.target_modules", "all-linear", f"{key}: {shown(value)}")
    elif any(set(name) & set("()[]*|^$\\+?") for name in names):
        migration.choose(
            "lora.target_modules", "all-linear", f"{key}: {shown(value)} is a pattern, not a list of names"
        )
    else:
        migration.put("lora.target_modules", names, f"{key}: {shown(value)}")
