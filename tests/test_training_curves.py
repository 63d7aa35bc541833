# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Training curves show what was logged, each thing in a panel of its own."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from oneref_hf.training_curves import main, save_training_curves, training_curves


@pytest.fixture
def log() -> list[dict]:
    """Two kinds of MRefM steps in turn, one score per four steps, and a number that is none."""
    rows = []
    for step in range(1, 51):
        loss = {"mim": 9 / step} if step % 2 else {"mlm": 5.0}
        rows.append({"step": step, "loss": 20 / step, **loss, "learning_rate": 1e-3, "grad_norm": math.nan})
        if step % 4 == 0:
            rows.append(
                {"step": step, "eval_miou": 0.5 - abs(step - 20) / 100, "eval_samples": 7, "eval_runtime": 1.0}
            )
    return [*rows, {"step": 50, "train_loss": 1.0, "train_runtime": 2.0}]


def panels(figure) -> dict:
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def test_every_loss_and_score_has_a_panel_with_what_was_logged(log):
    found = panels(training_curves(log))
    assert list(found) == ["loss, all together", "mim", "mlm", "miou", "learning rate"]
    logged, averaged = found["mim"].lines
    np.testing.assert_array_equal(logged.get_xydata(), [(step, 9 / step) for step in range(1, 51, 2)])
    assert averaged.get_ydata()[-1] == pytest.approx(9 / 49)  # 25 points: each is its own average
    logged, averaged = found["loss, all together"].lines
    assert averaged.get_ydata()[-1] == pytest.approx((20 / 50 + 20 / 49) / 2)
    assert [tuple(point) for point in found["miou"].lines[1].get_xydata()] == [(20, 0.5)]
    assert found["miou"].get_title(loc="right") == "best 0.5 at 20"


def test_a_checkpoint_becomes_a_picture(log, tmp_path, capsys):
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    picture = tmp_path / "curves.png"
    assert main([str(tmp_path), str(picture)]) == 0
    with Image.open(picture) as image:
        assert image.format == "PNG" and image.width > 1000 and len(image.convert("L").getcolors()) > 10
    save_training_curves(tmp_path / "trainer_state.json", tmp_path / "same.png")
    assert (tmp_path / "same.png").read_bytes() == picture.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "same.png", "trainer_state.json"]

    assert main([str(tmp_path / "nowhere"), str(picture)]) == 1
    assert "is not the trainer_state.json of a checkpoint" in capsys.readouterr().err


def test_nothing_to_draw_is_said():
    with pytest.raises(ValueError, match="neither losses nor scores"):
        training_curves([{"step": 3, "train_runtime": 1.0}])
