# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Image masking and relation labels against what the original produced, and by counting."""

import json
import math
from pathlib import Path

import pytest
import torch

from oneref_hf.data.masking import (
    blockwise_image_mask,
    dynamic_image_mask,
    random_image_mask,
    referred_region,
    visual_relation_labels,
)


FIXTURES = Path(__file__).parent.parent / "fixtures"
GOLDEN = [
    (int(side), row)
    for side, rows in json.loads((FIXTURES / "image_masking.json").read_text()).items()
    for row in rows
]
DRAWS = 200


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("side", "row"), GOLDEN)
def test_dynamic_mask_equals_the_original(side, row):
    box = row["box_cxcywh"]
    x0, y0, x1, y1 = row["region_xyxy_in_patches"]
    assert referred_region(box, side) == (x0, y0, x1, y1)
    masks = torch.stack([dynamic_image_mask(box, side, generator=generator(seed)) for seed in range(DRAWS)])
    assert masks.shape == (DRAWS, side * side) and masks.dtype == torch.bool
    inside = masks.view(DRAWS, side, side)[:, y0:y1, x0:x1].flatten(1)
    assert (inside.sum(1) == row["masked_inside"]).all()
    # Outside, a hypergeometric share of the k patches masked over the whole grid: compare both means within 5 sigma.
    patches, outer = side * side, side * side - inside.shape[1]
    share = (patches - int(patches * (1 - 0.35))) / patches
    sigma = math.sqrt(outer * share * (1 - share) * (patches - outer) / (patches - 1) / DRAWS)
    expected = row["masked_inside"] + outer * share
    assert row["mean_masked_total"] == pytest.approx(expected, abs=5 * sigma + 1e-9)
    assert masks.sum(1).double().mean().item() == pytest.approx(expected, abs=5 * sigma + 1e-9)


@pytest.mark.parametrize(("side", "row"), [(side, row) for side, row in GOLDEN if row["vts"] is not None])
def test_relation_labels_equal_the_original(side, row):
    labels = visual_relation_labels(torch.tensor(row["box_cxcywh"]), side)
    assert labels.dtype == torch.float32
    torch.testing.assert_close(labels, torch.tensor(row["vts"]), rtol=0, atol=1e-6)


def test_grids_need_not_be_square():
    """On 2 rows x 4 columns the box spans x 1..3 and y 0.5..1.5 in patches."""
    box, grid = [0.5, 0.5, 0.5, 0.5], (2, 4)
    assert referred_region(box, grid) == (0, 0, 4, 2)
    assert referred_region([0.875, 0.25, 0.2, 0.4], grid) == (2, 0, 4, 1)
    labels = visual_relation_labels(box, grid).view(2, 4, 4)
    assert labels[1, 3].tolist() == pytest.approx([(3 - 2) / 4, (1 - 1) / 2, 1 / 2, 1 / 1])
    assert labels[0, 0].tolist() == pytest.approx([-2 / 4, -1 / 2, 1 / 2, 1])
    assert dynamic_image_mask(box, grid, inside_ratio=0.5, generator=generator()).sum() == 4


def test_a_region_is_never_empty():
    corners = [[cx, cy, 0.0, 0.0] for cx in (0.0, 0.5, 1.0) for cy in (0.0, 0.5, 1.0)]
    for box in corners:
        x0, y0, x1, y1 = referred_region(box, (6, 9))
        assert 0 <= x0 < x1 <= 9 and 0 <= y0 < y1 <= 6


@pytest.mark.parametrize("ratio", [0, 0.3, 0.35, 0.75, 1])
def test_random_mask_counts_are_exact(ratio):
    mask = random_image_mask((5, 7), ratio, generator())
    assert mask.shape == (35,) and mask.sum() == 35 - int(35 * (1 - ratio))


@pytest.mark.parametrize("grid", [(4, 4), (14, 14), (24, 24), (6, 40)])
def test_blockwise_mask_reaches_its_target_in_blocks(grid):
    target = int(grid[0] * grid[1] * 0.4)
    masks = [blockwise_image_mask(grid, generator=generator(seed)).view(grid) for seed in range(30)]
    counts = torch.stack([mask.sum() for mask in masks])
    assert counts.max() <= target and counts.double().mean() > 0.9 * target
    if grid == (24, 24):
        # Blocks cluster: far fewer neighbours differ than the 48 % of independent patches.
        differing = torch.stack([(mask[:, 1:] != mask[:, :-1]).double().mean() for mask in masks]).mean()
        assert differing < 0.25


@pytest.mark.parametrize("draw", [
    lambda g: dynamic_image_mask([0.4, 0.5, 0.3, 0.2], 24, generator=g),
    lambda g: random_image_mask(24, generator=g),
    lambda g: blockwise_image_mask(24, generator=g),
])  # fmt: skip
def test_masks_follow_the_generator_and_nothing_else(draw):
    torch.manual_seed(1)
    first = draw(generator(3))
    torch.manual_seed(2)
    assert torch.equal(first, draw(generator(3)))
    assert not torch.equal(first, draw(generator(4)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random_image_mask(4, 1.5), "between 0 and 1, not 1.5"),
        (lambda: random_image_mask((0, 4)), "at least one row"),
        (lambda: dynamic_image_mask(torch.zeros(2, 4), 4), "four values"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
