"""What data sets are called in metrics."""

from collections import Counter
from collections.abc import Sequence

from megatron_lite.errors import UsageError


def names_of(sets: Sequence[tuple[str | None, str, str]]) -> list[str]:
    """Of each set's (given name, short name, whole path) its own name or the short one, the whole path where others
    share that. Raises UsageError where two are left with one name.
    """
    count = Counter(name or short for name, short, _ in sets)
    names = [name or (short if count[short] == 1 else path) for name, short, path in sets]
    name, times = Counter(names).most_common(1)[0] if names else ("", 0)
    if times > 1:
        raise UsageError(f"{times} validation sets are called {name!r}; give each a name of its own, {{name: ...}}")
    return names
