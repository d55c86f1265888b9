"""Fine-tuning in Gluon: from labelled texts to a bundle."""

from .finetune import FinetuneResult, finetune
from .recipe import RECIPES, Recipe

__all__ = ["RECIPES", "FinetuneResult", "Recipe", "finetune"]
