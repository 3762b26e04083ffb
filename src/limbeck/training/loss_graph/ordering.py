"""The order in which the models of a loss graph answer: teachers before those who learn from them."""

from __future__ import annotations

from collections.abc import Collection, Mapping


def components_in_order(needs: Mapping[str, Collection[str]]) -> list[tuple[str, ...]]:
    """Strongly connected components of a graph in topological order.

    Names that need each other, directly or through others, share a component. Each component stands after all
    that it needs; where that leaves a choice, the order of ``needs`` decides.

    Args:
        needs: for each name, the names that it needs. All of them are keys, too.
    """
    reached = {name: _reached(name, needs) for name in needs}
    left = list(
        dict.fromkeys(
            tuple(other for other in needs if other == name or (other in reached[name] and name in reached[other]))
            for name in needs
        )
    )
    order: list[tuple[str, ...]] = []
    while left:
        done = {name for component in order for name in component}
        ready = next(c for c in left if all(need in c or need in done for name in c for need in needs[name]))
        left.remove(ready)
        order.append(ready)
    return order


def _reached(start: str, needs: Mapping[str, Collection[str]]) -> set[str]:
    """All names that ``start`` needs, directly or through others."""
    found: set[str] = set()
    waiting = list(needs[start])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += needs[name]
    return found
