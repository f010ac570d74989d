"""The model that all servers of the comparison run: an MLP 64→512→512→8, in torch where it is installed, else in numpy.

Nothing of ours is imported here, so that the servers beside ours can be started with it alone.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

WIDTHS = (64, 512, 512, 8)
MAX_BATCH = 32


def library() -> str:
    """Return ``torch`` or ``numpy``."""
    return "torch" if importlib.util.find_spec("torch") else "numpy"


def weights() -> list[Any]:
    """Return the same matrices in every process."""
    import numpy as np

    random = np.random.default_rng(0)
    shapes = pairwise(WIDTHS)
    return [(random.normal(size=shape) / shape[0] ** 0.5).astype(np.float32) for shape in shapes]


def load() -> Callable[[Sequence[Any]], list[Any]]:
    """Return the model: a list of arrays in, a list of arrays out; one thread."""
    return _torch() if library() == "torch" else _numpy()


def _numpy() -> Callable[[Sequence[Any]], list[Any]]:
    import numpy as np

    *hidden, last = weights()

    def run(batch: Sequence[Any]) -> list[Any]:
        x = np.stack(batch)
        for matrix in hidden:
            x = np.maximum(x @ matrix, 0)
        return list(x @ last)

    return run


def _torch() -> Callable[[Sequence[Any]], list[Any]]:
    import numpy as np

    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(1)
    layers: list[Any] = []
    for matrix in weights():
        layer = torch.nn.Linear(*matrix.shape, bias=False)
        layer.weight.data = torch.from_numpy(matrix.T.copy())
        layers += [layer, torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1]).eval()

    def run(batch: Sequence[Any]) -> list[Any]:
        with torch.inference_mode():
            return list(model(torch.from_numpy(np.stack(batch))).numpy())

    return run


class Mlp:
    """The model as a handler."""

    def setup(self) -> None:
        """Load it."""
        self.run = load()

    def __call__(self, batch: list[Any]) -> list[Any]:
        """Answer a batch."""
        return self.run(batch)


class Same:
    """Answers with what it got."""

    def __call__(self, item: Any) -> Any:
        """Return it."""
        return item
