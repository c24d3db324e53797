"""What a number in the config has to be."""

from __future__ import annotations

import math
from typing import Any


def number(
    key: str, value: Any, *, least: float, most: float = math.inf, whole: bool = False
) -> None:
    """Raises ValueError, naming the config `key`, where the value is not such a number."""
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
        to = f" and at most {most:g}" if most < math.inf else ""
        raise ValueError(
            f"{key}={value!r}: expected a {'whole ' * whole}number, at least {least:g}{to}"
        )
