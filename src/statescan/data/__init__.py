"""Data: readers of a user's text, and generators of the synthetic tasks."""

from statescan.data._arena import ARENA, ArenaData, ArenaTask, arena_task, read_arena
from statescan.data._captioned import CaptionedImages, PatchCodec, k_means, read_images
from statescan.data._challenge import (
    ChallengeWeights,
    LabelAccuracy,
    best_thresholds,
    challenge_score,
    label_accuracy,
    read_challenge_weights,
)
from statescan.data._copying import Copying, SelectiveCopying, copying
from statescan.data._cubes import (
    PARTS,
    BandReduction,
    Cube,
    MapAccuracy,
    Windows,
    map_accuracy,
    read_cube,
    split_pixels,
)
from statescan.data._induction import InductionHead, InductionHeads, induction_head_sequences
from statescan.data._listops import LISTOPS_VOCABULARY, ListOps, evaluate_listops, listops_tokens, listops_value
from statescan.data._long_context import Passkey, PhoneBook
from statescan.data._made_cubes import make_cube, material_spectra, smooth_spectra
from statescan.data._made_records import MADE_DIAGNOSES, make_ecg, make_records
from statescan.data._pathfinder import PATHFINDER, PathfinderImage, PathfinderSettings, pathfinder, pathfinder_batch
from statescan.data._recall import (
    AssociativeRecall,
    MultiQueryRecall,
    associative_recall_sequences,
    multi_query_recall,
)
from statescan.data._records import (
    EQUIVALENT_DIAGNOSES,
    LEADS,
    RecordHeader,
    RecordSet,
    read_record,
    read_record_header,
    read_records,
    record_parts,
)
from statescan.data._sequences import SEQUENCE_DATA, LabelledSequences, SequenceBatch, read_sequences
from statescan.data._series import ForecastBatch, Series, SeriesWindows, check_fractions, read_series, shown_time
from statescan.data._signals import adding, delay
from statescan.data._stroke_digits import stroke_digits
from statescan.data._synthetic import IGNORED, SyntheticBatch, SyntheticTask, batch_seed
from statescan.data._tasks import SYNTHETIC_TASKS, synthetic_task
from statescan.data._text import HubSource, TextPiece, read_text, text_files
from statescan.data._tokens import TokenStream, fingerprint, tokenize, write_tokens
from statescan.data._windows import ContinuedOrder, SequentialOrder, ShuffledOrder, TokenBatch, TokenBatches
from statescan.data.environments import (
    ENVIRONMENTS,
    MemoryEnvironment,
    MetaCartPole,
    RepeatPrevious,
    StatelessCartPole,
    as_gymnasium,
    memory_environment,
)

__all__ = [
    "ARENA",
    "ENVIRONMENTS",
    "EQUIVALENT_DIAGNOSES",
    "IGNORED",
    "LEADS",
    "LISTOPS_VOCABULARY",
    "MADE_DIAGNOSES",
    "PARTS",
    "PATHFINDER",
    "SEQUENCE_DATA",
    "SYNTHETIC_TASKS",
    "ArenaData",
    "ArenaTask",
    "AssociativeRecall",
    "BandReduction",
    "CaptionedImages",
    "ChallengeWeights",
    "ContinuedOrder",
    "Copying",
    "Cube",
    "ForecastBatch",
    "HubSource",
    "InductionHead",
    "InductionHeads",
    "LabelAccuracy",
    "LabelledSequences",
    "ListOps",
    "MapAccuracy",
    "MemoryEnvironment",
    "MetaCartPole",
    "MultiQueryRecall",
    "Passkey",
    "PatchCodec",
    "PathfinderImage",
    "PathfinderSettings",
    "PhoneBook",
    "RecordHeader",
    "RecordSet",
    "RepeatPrevious",
    "SelectiveCopying",
    "SequenceBatch",
    "SequentialOrder",
    "Series",
    "SeriesWindows",
    "ShuffledOrder",
    "StatelessCartPole",
    "SyntheticBatch",
    "SyntheticTask",
    "TextPiece",
    "TokenBatch",
    "TokenBatches",
    "TokenStream",
    "Windows",
    "adding",
    "arena_task",
    "as_gymnasium",
    "associative_recall_sequences",
    "batch_seed",
    "best_thresholds",
    "challenge_score",
    "check_fractions",
    "copying",
    "delay",
    "evaluate_listops",
    "fingerprint",
    "induction_head_sequences",
    "k_means",
    "label_accuracy",
    "listops_tokens",
    "listops_value",
    "make_cube",
    "make_ecg",
    "make_records",
    "map_accuracy",
    "material_spectra",
    "memory_environment",
    "multi_query_recall",
    "pathfinder",
    "pathfinder_batch",
    "read_arena",
    "read_challenge_weights",
    "read_cube",
    "read_images",
    "read_record",
    "read_record_header",
    "read_records",
    "read_sequences",
    "read_series",
    "read_text",
    "record_parts",
    "shown_time",
    "smooth_spectra",
    "split_pixels",
    "stroke_digits",
    "synthetic_task",
    "text_files",
    "tokenize",
    "write_tokens",
]
