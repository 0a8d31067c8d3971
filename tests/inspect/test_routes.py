"""Routes as pictures and as text."""

from __future__ import annotations

import struct

import pytest

from statescan import inspect, routes
from statescan.cli import main


def test_text_says_when_each_cell_is_visited():
    assert inspect.route_text("snake_pair", 2, 3) == "walk 0\n0  1  2\n5  4  3\n\nwalk 1\n0  3  4\n1  2  5"
    assert inspect.route_text("multiscale_low", 1, 2) == "walk 0\n1/2/5  0/3/4"
    assert inspect.route_text(routes.registers(1), 1, 2).endswith("0  2\ntokens beside the grid at 1")
    assert "." in inspect.route_text("atrous_step2", 2, 2)


@pytest.mark.parametrize(("size", "expected"), [("8x6", (8, 6)), ("5", (5, 5)), (" 3X4", (3, 4))])
def test_sizes(size, expected):
    assert inspect.parse_size(size) == expected


@pytest.mark.parametrize("name", ["snake", "eight", "window3", "registers2", "multiscale_low", "atrous_step3"])
def test_the_command_draws_a_panel_a_walk(tmp_path, capsys, name):
    path = tmp_path / "route.png"
    assert main(["inspect", "route", "--route", name, "--size", "5x7", "--out", str(path)]) == 0
    assert f"{routes.get(name).walks} walk" in capsys.readouterr().out
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    width, _ = struct.unpack(">II", data[16:24])
    assert width >= 380 * min(routes.get(name).walks, 4)


def test_one_cell_can_be_drawn(tmp_path):
    inspect.draw_route(tmp_path / "route.svg", "spiral", 1, 1)
    assert (tmp_path / "route.svg").stat().st_size


def test_the_command_prints(capsys):
    assert main(["inspect", "route", "--route", "column", "--size", "2x2"]) == 0
    assert capsys.readouterr().out == "walk 0\n0  2\n1  3\n"
    assert main(["inspect", "route", "--list"]) == 0
    listed = capsys.readouterr().out.split()
    assert {"cross", "snake", "gilbert", "windowN"} <= set(listed)
    for name in listed:
        routes.get(name.replace("N", "2")).table(4, 5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--route", "snaek"], "route: unknown 'snaek'; nearest: 'snake'"),
        (["--route", "snake", "--size", "8y8"], "size: rows x columns such as 8x8, got '8y8'"),
        (["--route", "snake", "--size", "0x8"], "size: rows x columns such as 8x8, got '0x8'"),
        (["--route", "snake", "--size", "65", "--out", "OUT"], "at most 64 x 64 cells"),
        ([], "--route: which one? `statescan inspect route --list` prints their names"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, flags, message):
    flags = [str(tmp_path / "p.png") if flag == "OUT" else flag for flag in flags]
    assert main(["inspect", "route", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
