"""What the ``eval`` commands share."""

import numpy as np

from saga_fast.attention_config import AttentionConfig
from saga_fast.cli.subject import widened
from saga_fast.loaders import BoxTable


def test_boxes_are_those_that_training_cropped_with() -> None:
    table = BoxTable.whole(2)
    table.boxes[:] = [[0.25, 0.25, 0.5, 0.5], [0.0, 0.5, 0.25, 0.25]]
    wide = widened(table, AttentionConfig(margin=0.5, min_side=0.5))
    np.testing.assert_allclose(wide.boxes, [[0.0, 0.0, 1.0, 1.0], [0.0, 0.375, 0.5, 0.5]])
    np.testing.assert_array_equal(widened(table, AttentionConfig()).boxes, table.boxes)
