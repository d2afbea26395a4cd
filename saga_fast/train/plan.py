"""The crops of a training epoch, from the config, the method and the box table."""

from __future__ import annotations

from dataclasses import replace

from saga_fast.config import TrainConfig
from saga_fast.loaders import BoxTable, CropPlan
from saga_fast.loaders.plan import MoreViews
from saga_fast.methods import Method


def crop_plan(config: TrainConfig, model: Method, table: BoxTable | None = None) -> CropPlan:
    """Random resized crops of whole images, or with a table as ``config.attention`` says.

    Args:
        config: the experiment.
        model: says how many views it takes, and of which further sizes.
        table: D^att, or None while there is none.
    """
    plan = CropPlan(
        size=config.crop.size,
        seed=config.seed,
        num_views=model.num_views,
        scale=config.crop.scale,
        ratio=config.crop.ratio,
        more=tuple(MoreViews(size=group.size, count=group.count, scale=group.scale) for group in model.more_views),
    )
    a = config.attention
    if table is None or a is None:
        return plan
    count = plan.num_views + (a.views == "paste")
    return replace(
        plan,
        num_views=count,
        table=table,
        views=a.views,
        whole_views=model.whole_views,
        share=a.share,
        crop=a.crop,
        min_side=a.min_side,
    )
