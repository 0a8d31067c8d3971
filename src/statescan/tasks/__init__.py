"""Tasks: what models are trained for, and how well they do it. Heavy libraries are imported on use."""

from statescan.tasks._run_folder import first_process
from statescan.tasks.classification import ClassificationTraining, train_classification
from statescan.tasks.evaluation import LanguageScore, evaluate_language
from statescan.tasks.forecasting import ForecastResult, ForecastTraining, forecast_series, train_forecast
from statescan.tasks.language import LanguageTraining, train_language
from statescan.tasks.lra import LRATraining, train_lra
from statescan.tasks.reinforcement import ReinforcementTraining, train_reinforcement
from statescan.tasks.sequence import SequenceTraining, train_sequence
from statescan.tasks.synthetic import SyntheticTraining, train_synthetic

__all__ = [
    "ClassificationTraining",
    "ForecastResult",
    "ForecastTraining",
    "LRATraining",
    "LanguageScore",
    "LanguageTraining",
    "ReinforcementTraining",
    "SequenceTraining",
    "SyntheticTraining",
    "evaluate_language",
    "first_process",
    "forecast_series",
    "train_classification",
    "train_forecast",
    "train_language",
    "train_lra",
    "train_reinforcement",
    "train_sequence",
    "train_synthetic",
]
