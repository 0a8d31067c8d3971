"""Routes by name."""

from __future__ import annotations

import re
from difflib import get_close_matches

from statescan.routes import _walks
from statescan.routes._route import Route, Rule

_ROUTES: dict[str, Route] = {}


def register(name: str, rule: Rule) -> Route:
    """Add a route: a function (height, width) -> cell indices in visiting order, one array or one a walk.

    Raises:
        ValueError: the name is taken.
    """
    if name in _ROUTES:
        raise ValueError(f"route {name!r} exists already")
    _ROUTES[name] = Route(name, rule)
    return _ROUTES[name]


def get(name: str | Route) -> Route:
    """The route `name`; a route is given back as it is.

    Names joined by ``+`` give the walks of all, one after another; ``windowK`` and ``windowK_flip`` exist for any K.

    Raises:
        ValueError: there is none of that name; the nearest is named.
    """
    if isinstance(name, Route):
        return name
    if "+" in name and name not in _ROUTES:
        first, *others = (get(part) for part in name.split("+"))
        _ROUTES[name] = sum(others, first)
    window = re.fullmatch(r"window([1-9]\d*)(_flip)?", name)
    if window is not None and name not in _ROUTES:
        rule = _walks.windows(int(window[1]))
        register(name, _walks.backwards(rule) if window[2] else rule)
    if name not in _ROUTES:
        near = get_close_matches(name, _ROUTES, n=1)
        hint = f"; nearest: {near[0]!r}" if near else ""
        raise ValueError(f"route: unknown {name!r}{hint}; known: {', '.join(names())}")
    return _ROUTES[name]


def names() -> list[str]:
    """Names of all routes, sorted."""
    return sorted(name for name in _ROUTES if "+" not in name)


for _name, _rule in _walks.RULES.items():
    register(_name, _rule)
