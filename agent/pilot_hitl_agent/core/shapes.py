"""Interned resource requests with what the hot paths ask of them, worked out once."""

from __future__ import annotations

from pilot_hitl.model.ids import ShapeId
from pilot_hitl.model.resources import GPU_SHARES, Shape


class Form:
    """One interned shape.

    Attributes:
        simple: one rank that wants cores and nothing else, so that counting cores decides whether it fits.
        tiny: one core and nothing else: never starved, so it needs no plan.
        alone: cores that a node must offer to take all ranks, 0 when no node may take all of them.
        total: cores, GPU shares and memory of all ranks.
        devices: whole GPUs of each rank; share: the fraction of one device, when it is less than one.
        launcher: an attempt holds one of the pilot's launcher slots.
        choices: the forms that would do, the preferred one first; only itself, unless the shape has alternatives. What
            a form with several says of cores, GPUs and memory is what the first one asks for.
        others: the choices but for the first.
    """

    __slots__ = (
        "_within", "alone", "choices", "colocate", "cores", "devices", "exclusive", "id", "launcher", "memory",
        "others", "per_node", "ranks", "shape", "share", "simple", "tiny", "total",
    )  # fmt: skip

    def __init__(self, identifier: ShapeId, shape: Shape, choices: tuple[Form, ...] = ()) -> None:
        self.id = identifier
        self.choices = choices or (self,)
        self.others = choices[1:]
        self._within: dict[int, bool] = {}
        self.shape = shape
        self.ranks = shape.ranks
        self.cores = shape.cores
        self.memory = shape.memory
        self.per_node = shape.ranks_per_node or shape.ranks
        self.colocate = shape.colocate
        self.exclusive = shape.exclusive
        self.launcher = shape.launcher
        whole = shape.gpu_shares >= GPU_SHARES
        self.devices = shape.gpu_shares // GPU_SHARES if whole else 0
        self.share = 0 if whole else shape.gpu_shares
        plain = not (shape.gpu_shares or shape.memory or shape.colocate or shape.exclusive)
        self.total = (shape.ranks * shape.cores, shape.ranks * shape.gpu_shares, shape.ranks * shape.memory)
        self.simple = plain and shape.ranks == 1 and not (shape.launcher or choices)
        self.tiny = self.simple and shape.cores == 1
        self.alone = shape.ranks * shape.cores if self.per_node >= shape.ranks else 0

    def within(self, other: Form) -> bool:
        """Return whether what an attempt of another form frees is enough for one of this form."""
        found = self._within.get(other.id)
        if found is None:
            usable = bool(self.alone) and not self.exclusive and not self.colocate
            found = usable and all(mine <= theirs for mine, theirs in zip(self.total, other.total, strict=True))
            self._within[other.id] = found
        return found


class ShapeTable:
    """All shapes of one agent; equal shapes are one object."""

    def __init__(self) -> None:
        self._known: dict[Shape, Form] = {}

    def __len__(self) -> int:
        return len(self._known)

    def form(self, shape: Shape) -> Form:
        """Return the interned form of a shape."""
        found = self._known.get(shape)
        if found is None:
            choices = tuple(map(self.form, shape.choices)) if shape.alternatives else ()
            found = self._known[shape] = Form(ShapeId(len(self._known)), shape, choices)
        return found
