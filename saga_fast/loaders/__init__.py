"""Images in, batches out. No file here imports a model."""

from saga_fast.loaders.attention_crop import AttentionCrop, AttentionCropFolder
from saga_fast.loaders.bad_images import BadImages
from saga_fast.loaders.batch import Batch
from saga_fast.loaders.box_table import BoxTable
from saga_fast.loaders.decode import MAX_PIXELS
from saga_fast.loaders.engines import ENGINES, engines_for, open_loader, open_source
from saga_fast.loaders.fixed_plans import BoxPlan, CentrePlan
from saga_fast.loaders.image_folder import ImageFolder
from saga_fast.loaders.loader import Loader, LoaderOptions, Place
from saga_fast.loaders.plan import CropPlan, Plan, WholePlan
from saga_fast.loaders.shards import Shards
from saga_fast.loaders.source import Source

__all__ = [
    "ENGINES",
    "MAX_PIXELS",
    "AttentionCrop",
    "AttentionCropFolder",
    "BadImages",
    "Batch",
    "BoxPlan",
    "BoxTable",
    "CentrePlan",
    "CropPlan",
    "ImageFolder",
    "Loader",
    "LoaderOptions",
    "Place",
    "Plan",
    "Shards",
    "Source",
    "WholePlan",
    "engines_for",
    "open_loader",
    "open_source",
]
