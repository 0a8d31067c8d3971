"""Routes by name."""

from __future__ import annotations

import re
from collections.abc import Callable

from statescan._names import nearest
from statescan.routes import _curves, _diagonals, _partial, _snakes, _walks, _windows
from statescan.routes._route import Route, Rule

_ROUTES: dict[str, Route] = {}


def register(name: str, rule: Rule, *, tokens: int = 0, repeats: int = 1) -> Route:
    """Add a route: a function (height, width) -> cell indices in visiting order, one array or one a walk.

    Arguments:
        name: what it is called.
        rule: the function.
        tokens: how many tokens beside the grid it visits.
        repeats: how often a walk comes to a cell at most.

    Raises:
        ValueError: the name is taken.
    """
    if name in _ROUTES or _parametrised(name) is not None:
        raise ValueError(f"route {name!r} exists already")
    _ROUTES[name] = Route(name, rule, (), tokens, repeats)
    return _ROUTES[name]


def get(name: str | Route) -> Route:
    """The route `name`, such as ``cross``, ``window7`` or ``snake_reversed``; a route is given back as it is.

    Names joined by ``+`` give the walks of all, one after another.

    Raises:
        ValueError: there is none of that name; the nearest is named.
    """
    if isinstance(name, Route):
        return name
    if "+" in name:
        first, *others = (get(part) for part in name.split("+"))
        return sum(others, first)
    found = _ROUTES.get(name) or _parametrised(name)
    if found is None and name.endswith("_reversed"):
        base = name.removesuffix("_reversed")
        forward = _ROUTES.get(base) or _parametrised(base)
        found = forward.reversed() if forward else None
    if found is None:
        hint = nearest(re.sub(r"\d+", "N", name), [*_ROUTES, *PATTERNS])
        raise ValueError(f"route: unknown {name!r}{hint}; known: {', '.join([*names(), *PATTERNS])}")
    return found


def names() -> list[str]:
    """Names of all routes without parameters, sorted."""
    return sorted(_ROUTES)


def patterns() -> list[str]:
    """Names of routes with parameters, a capital letter standing for a number; any name may end in ``_reversed``."""
    return list(PATTERNS)


def windows(size: int, *, column_first: bool = False, flipped: bool = False) -> Route:
    """Windows of size x size cells one after another; see the name ``windowN``.

    Arguments:
        size: side of a window.
        column_first: windows and their cells in column order.
        flipped: backwards, what was padded first.
    """
    name = f"window{size}" + "_column_first" * column_first
    route = Route(name, _windows.window, (("size", size), ("column_first", column_first)))
    return Route(f"{name}_flip", route.reversed().rule, (("route", route),)) if flipped else route


def nested_s(stripe: int, shift: int = 0) -> Route:
    """S-shaped stripes of `stripe` columns, the first of `shift`: four walks; see ``nested_s_stripeM_shiftS``."""
    return Route(f"nested_s_stripe{stripe}_shift{shift}", _snakes.nested_s, (("stripe", stripe), ("shift", shift)))


def atrous(step: int = 2) -> Route:
    """step x step walks, each over every step-th cell of every step-th row."""
    return Route(f"atrous_step{step}", _partial.atrous, (("step", step),))


def registers(count: int) -> Route:
    """Rows, with `count` tokens evenly between; `Route.walk` takes the tokens, `Route.positions` says where they are."""
    return Route(f"registers{count}", _partial.registers, (("count", count),), count)


def shuffle(seed: int) -> Route:
    """A random permutation, drawn from the seed and the grid's size."""
    if seed < 0:
        raise ValueError(f"seed: not negative, got {seed}")
    return Route(f"shuffle{seed}", _curves.shuffle, (("seed", seed),))


#: Names with numbers in them: the expression, and what makes the route of its groups.
PATTERNS: dict[str, tuple[str, Callable[..., Route]]] = {
    "windowN": (r"window(\d+)", windows),
    "windowN_flip": (r"window(\d+)_flip", lambda size: windows(size, flipped=True)),
    "windowN_column_first": (r"window(\d+)_column_first", lambda size: windows(size, column_first=True)),
    "windowN_column_first_flip": (
        r"window(\d+)_column_first_flip",
        lambda size: windows(size, column_first=True, flipped=True),
    ),
    "nested_s_stripeN_shiftN": (r"nested_s_stripe(\d+)_shift(\d+)", nested_s),
    "atrous_stepN": (r"atrous_step(\d+)", atrous),
    "registersN": (r"registers(\d+)", registers),
    "shuffleN": (r"shuffle(\d+)", shuffle),
}


def _parametrised(name: str) -> Route | None:
    for expression, make in PATTERNS.values():
        found = re.fullmatch(expression, name)
        if found is not None:
            return make(*map(int, found.groups()))
    return None


for _rules in (_walks.RULES, _snakes.RULES, _diagonals.RULES, _curves.RULES):
    for _name, _rule in _rules.items():
        register(_name, _rule)
register("multiscale_low", _partial.multiscale_low, repeats=3)
register("middle_token", _partial.middle_token, tokens=1)
register("two_tokens", _partial.two_tokens, tokens=2)
