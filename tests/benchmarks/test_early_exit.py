"""The benchmark of early exits, at sizes that take seconds."""

from benchmarks import early_exit


def test_stretches_count_or_look_up():
    rows = early_exit.mixture(4, 200, seed=3)
    table = {}
    for row in rows.tolist():
        for place, token in enumerate(row[:-8]):
            if token == early_exit.COUNT_MARK:
                counted = row[place + 1 : place + 8]
                assert counted == [(counted[0] + step) % early_exit.NUMBERS for step in range(7)]
            if token == early_exit.LOOK_UP_MARK:
                first, second, found = row[place + 1 : place + 4]
                assert table.setdefault((first, second), found) == found
    assert table


def test_a_curve_has_its_ends_and_keeps_the_quality():
    model = early_exit.create(early_exit.BACKBONES["Mamba"], dim=16, depth=3)
    found = early_exit.curve(
        model, "mamba", layers=(1, 2), skipped_states="skip", seconds=0.2, quality=0.5, sequences=2, length=16
    )
    first = found["points"][0]
    assert (first["saved"], first["agreement"]) == (0, 1)
    (chosen,) = [point for point in found["points"] if point["thresholds"][0] == found["threshold"]]
    assert chosen["agreement"] >= 0.5
