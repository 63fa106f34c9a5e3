import pytest

from recipe.core.format import format_bytes, format_time


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (170, "3 min"), (3569, "59 min"), (3571, "1 h 0 min"),
        (19_200, "5 h 20 min"), (172_799, "2 d 0 h"), (187_200, "2 d 4 h"),
    ],
)  # fmt: skip
def test_times_are_shown_in_suitable_units(seconds, shown):
    assert format_time(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (27.6e9, "27.6 GB"), (4e12, "4.00 TB")]
)
def test_bytes_are_shown_in_powers_of_1000(count, shown):
    assert format_bytes(count) == shown
