"""Scenes as dense labels: what a learned reader has to say of each cell of a grid.

The grid is finer than the gap between two objects, so no two cells that touch have their centres in
different objects: the connected regions of occupied cells are the objects.

G cells along a side, K channels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from salon.shapes.prompts import ATTRIBUTES
from salon.shapes.render import coverage
from salon.shapes.world import SIZES, Scene

CELLS = 16  # G; a cell's side, 1 / 16, is less than world.GAP
OCCUPIED = "occupied"
# Each attribute's values are channels; of `occupied` it is one, how much of a cell is covered.
WORDS: dict[str, tuple[str, ...]] = {
    OCCUPIED: (OCCUPIED,),
    **{word: ATTRIBUTES[word] for word in ("shape", "color", "size", "background")},
}
_ENDS = np.cumsum([len(words) for words in WORDS.values()])
CHANNELS = {
    name: slice(int(end) - len(words), int(end))
    for (name, words), end in zip(WORDS.items(), _ENDS, strict=True)
}
WIDTH = int(_ENDS[-1])  # K


def labels(scene: Scene) -> NDArray[np.float32]:
    """Shares of each cell (K, G, G): its object's attributes are nonzero where it is covered, the
    background everywhere."""
    told = np.zeros((WIDTH, CELLS, CELLS), np.float32)
    occupied = told[CHANNELS[OCCUPIED]][0]  # (G, G)
    for item in scene.objects:
        covered = coverage(item.shape, SIZES[item.size], item.x, item.y, CELLS)
        mine = covered > occupied
        occupied[mine] = covered[mine]
        for word in ("shape", "color", "size"):
            values = WORDS[word]
            told[CHANNELS[word], mine] = np.eye(len(values))[values.index(getattr(item, word))][
                :, None
            ]
    grounds = WORDS["background"]
    told[CHANNELS["background"]][grounds.index(scene.background)] = 1
    return told
