"""Training a retriever or a re-ranker by its recipe, and cross-fitting one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from shoulders.corpus.index import Hit, Index
from shoulders.corpus.supervision import Supervised, Supervision
from shoulders.data.evidence import FOLDS
from shoulders.data.mixture import Mixture
from shoulders.data.tasks import TRAIN
from shoulders.errors import UsageError
from shoulders.evaluation.protocol import EvaluationPlan, chosen_examples
from shoulders.evaluation.provenance import circumstances
from shoulders.evaluation.ranking import Asked, RankingScores, asked, ranking
from shoulders.files import read_json, write_json
from shoulders.recipes.build import load_tasks
from shoulders.recipes.folders import BEST
from shoulders.recipes.jobs import Job
from shoulders.recipes.ranking import RERANKER, RankingRecipe, ranking_recipe_from_json
from shoulders.recipes.running import RunFolder, Watch
from shoulders.training.checkpoint import Progress
from shoulders.training.ranking import SupervisedSource
