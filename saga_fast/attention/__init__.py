"""The attention pass (SAGA, Eq. 2 to 4 and Algorithm 1): from a model and a data set to one crop box per image."""

from saga_fast.attention.build import build_box_table, check_attention
from saga_fast.attention.config import AttentionConfig, AttentionPass
from saga_fast.attention.foreign import FeatureModel

__all__ = ["AttentionConfig", "AttentionPass", "FeatureModel", "build_box_table", "check_attention"]
