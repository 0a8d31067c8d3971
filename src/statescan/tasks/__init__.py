"""Tasks: what models are trained for, and how well they do it. Heavy libraries are imported on use."""

from statescan.tasks._objective_sampler import (
    ExplorationSchedule,
    ObjectiveSampler,
    RewardModel,
    normalise_actions,
    objective_reward,
)
from statescan.tasks._run_folder import first_process
from statescan.tasks._students import Student, image_flops, shrink
from statescan.tasks.classification import ClassificationTraining, train_classification
from statescan.tasks.cubes import CubeTraining, classify_cube, draw_map, train_hyperspectral
from statescan.tasks.evaluation import LanguageScore, evaluate_language
from statescan.tasks.exits import ExitTraining, distil_exits, draw_exits, train_exits
from statescan.tasks.experiment import (
    ArithmeticExperiment,
    CopyExperiment,
    EditDistanceExperiment,
    ExperimentResult,
    LastOccurrenceExperiment,
    LISExperiment,
    LocalProgramExperiment,
    run_experiment,
)
from statescan.tasks.forecasting import ForecastResult, ForecastTraining, forecast_series, train_forecast
from statescan.tasks.language import LanguageTraining, train_language
from statescan.tasks.lra import LRATraining, train_lra
from statescan.tasks.multimodal import MultimodalTraining, train_multimodal
from statescan.tasks.objectives import ObjectiveTraining, train_objectives
from statescan.tasks.progressive_distillation import DistillationResult, DistillationTraining, train_distillation
from statescan.tasks.records import RecordAnswer, RecordTraining, classify_record, train_records
from statescan.tasks.reinforcement import ReinforcementTraining, train_reinforcement
from statescan.tasks.retrieval import RetrievalTraining, train_retrieval
from statescan.tasks.sequence import SequenceTraining, train_sequence
from statescan.tasks.synthetic import SyntheticTraining, train_synthetic

__all__ = [
    "ArithmeticExperiment",
    "ClassificationTraining",
    "CopyExperiment",
    "CubeTraining",
    "DistillationResult",
    "DistillationTraining",
    "EditDistanceExperiment",
    "ExitTraining",
    "ExperimentResult",
    "ExplorationSchedule",
    "ForecastResult",
    "ForecastTraining",
    "LISExperiment",
    "LRATraining",
    "LanguageScore",
    "LanguageTraining",
    "LastOccurrenceExperiment",
    "LocalProgramExperiment",
    "MultimodalTraining",
    "ObjectiveSampler",
    "ObjectiveTraining",
    "RecordAnswer",
    "RecordTraining",
    "ReinforcementTraining",
    "RetrievalTraining",
    "RewardModel",
    "SequenceTraining",
    "Student",
    "SyntheticTraining",
    "classify_cube",
    "classify_record",
    "distil_exits",
    "draw_exits",
    "draw_map",
    "evaluate_language",
    "first_process",
    "forecast_series",
    "image_flops",
    "normalise_actions",
    "objective_reward",
    "run_experiment",
    "shrink",
    "train_classification",
    "train_distillation",
    "train_exits",
    "train_forecast",
    "train_hyperspectral",
    "train_language",
    "train_lra",
    "train_multimodal",
    "train_objectives",
    "train_records",
    "train_reinforcement",
    "train_retrieval",
    "train_sequence",
    "train_synthetic",
]
