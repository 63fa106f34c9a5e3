import pytest

from recipe.report.loss_curve import last_loss


def test_last_loss_covers_at_least_one_logging_interval():
    points = [{"step": 10, "loss": 2.0}, {"step": 20, "loss": 1.0}]
    assert last_loss(points, 10) == 1.0
    assert last_loss([*points, {"step": 21, "loss": 12.0}], 10) == pytest.approx(2.0)
    assert last_loss([{"step": 3, "loss": 5.0}], 10) == 5.0
