"""Data: readers of a user's text, and generators of the synthetic tasks."""

from statescan.data._arena import ARENA, ArenaData, ArenaTask, arena_task, read_arena
from statescan.data._copying import Copying, SelectiveCopying, copying
from statescan.data._image_batches import ImageBatch, ImageBatches, Views
from statescan.data._images import (
    IMAGE_DATA,
    ImageParts,
    LabelledImages,
    find_images,
    image_files,
    images_to_try,
    read_image,
    read_images,
    usable,
)
from statescan.data._induction import InductionHead, InductionHeads, induction_head_sequences
from statescan.data._listops import LISTOPS_VOCABULARY, ListOps, evaluate_listops, listops_tokens, listops_value
from statescan.data._long_context import Passkey, PhoneBook
from statescan.data._pathfinder import PATHFINDER, PathfinderImage, PathfinderSettings, pathfinder, pathfinder_batch
from statescan.data._recall import (
    AssociativeRecall,
    MultiQueryRecall,
    associative_recall_sequences,
    multi_query_recall,
)
from statescan.data._sequences import SEQUENCE_DATA, LabelledSequences, SequenceBatch, read_sequences
from statescan.data._series import ForecastBatch, Series, SeriesWindows, check_fractions, read_series, shown_time
from statescan.data._signals import adding, delay
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
    "IGNORED",
    "IMAGE_DATA",
    "LISTOPS_VOCABULARY",
    "PATHFINDER",
    "SEQUENCE_DATA",
    "SYNTHETIC_TASKS",
    "ArenaData",
    "ArenaTask",
    "AssociativeRecall",
    "ContinuedOrder",
    "Copying",
    "ForecastBatch",
    "HubSource",
    "ImageBatch",
    "ImageBatches",
    "ImageParts",
    "InductionHead",
    "InductionHeads",
    "LabelledImages",
    "LabelledSequences",
    "ListOps",
    "MemoryEnvironment",
    "MetaCartPole",
    "MultiQueryRecall",
    "Passkey",
    "PathfinderImage",
    "PathfinderSettings",
    "PhoneBook",
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
    "Views",
    "adding",
    "arena_task",
    "as_gymnasium",
    "associative_recall_sequences",
    "batch_seed",
    "check_fractions",
    "copying",
    "delay",
    "evaluate_listops",
    "find_images",
    "fingerprint",
    "image_files",
    "images_to_try",
    "induction_head_sequences",
    "listops_tokens",
    "listops_value",
    "memory_environment",
    "multi_query_recall",
    "pathfinder",
    "pathfinder_batch",
    "read_arena",
    "read_image",
    "read_images",
    "read_sequences",
    "read_series",
    "read_text",
    "shown_time",
    "synthetic_task",
    "text_files",
    "tokenize",
    "usable",
    "write_tokens",
]
