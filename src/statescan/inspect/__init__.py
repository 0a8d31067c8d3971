"""What a model costs and does: parameters, FLOPs, bytes, speed; what memories hold; in which order routes walk."""

from statescan.inspect._alignment import (
    METRICS,
    Alignment,
    align,
    alignment_dict,
    chance,
    cka,
    cknna,
    clamp_outliers,
    cycle_knn,
    layers_of,
    mutual_knn,
    nearest_neighbours,
)
from statescan.inspect._alignment_pictures import draw_alignment, draw_scaling
from statescan.inspect._features import (
    FEATURE_FILES,
    blocks_of,
    frame_features,
    image_features,
    layer_means,
    mean_of_frames,
    read_features,
    read_texts,
    spread_frames,
    text_features,
)
from statescan.inspect._hippo import Recollection, draw_memory, recollect
from statescan.inspect._image_files import as_input, picture_files, read_picture, sample_pictures
from statescan.inspect._images import ImageCost, image_cost, reads_images
from statescan.inspect._pruning import PrunedCost, pruning_costs
from statescan.inspect._receptive_field import ReceptiveField, last_grid, receptive_field
from statescan.inspect._routes import draw_route, parse_size, route_text
from statescan.inspect._scaling_law import ScalingLaw, fit_scaling_law
from statescan.inspect._scan_pictures import (
    ScanLayer,
    draw_activation,
    draw_attention,
    draw_receptive_field,
    draw_time_steps,
    scan_layers,
)
from statescan.inspect._scan_sites import Reading, ScanSite, scan_sites
from statescan.inspect._sizes import (
    ModelCost,
    build_without_memory,
    count_parameters,
    measure_cost,
    reads_tokens,
    width_and_depth,
)
from statescan.inspect._speed import ModelSpeed, measure_speed

__all__ = [
    "FEATURE_FILES",
    "METRICS",
    "Alignment",
    "ImageCost",
    "ModelCost",
    "ModelSpeed",
    "PrunedCost",
    "Reading",
    "ReceptiveField",
    "Recollection",
    "ScalingLaw",
    "ScanLayer",
    "ScanSite",
    "align",
    "alignment_dict",
    "as_input",
    "blocks_of",
    "build_without_memory",
    "chance",
    "cka",
    "cknna",
    "clamp_outliers",
    "count_parameters",
    "cycle_knn",
    "draw_activation",
    "draw_alignment",
    "draw_attention",
    "draw_memory",
    "draw_receptive_field",
    "draw_route",
    "draw_scaling",
    "draw_time_steps",
    "fit_scaling_law",
    "frame_features",
    "image_cost",
    "image_features",
    "last_grid",
    "layer_means",
    "layers_of",
    "mean_of_frames",
    "measure_cost",
    "measure_speed",
    "mutual_knn",
    "nearest_neighbours",
    "parse_size",
    "picture_files",
    "pruning_costs",
    "read_features",
    "read_picture",
    "read_texts",
    "reads_images",
    "reads_tokens",
    "receptive_field",
    "recollect",
    "route_text",
    "sample_pictures",
    "scan_layers",
    "scan_sites",
    "spread_frames",
    "text_features",
    "width_and_depth",
]
