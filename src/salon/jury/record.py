"""What is known of one trained model, as `record.json` holds it: all that a report is made of.

One record is one label, checkpoint and seed. Pictures are PNG files, as bytes here and as base64 in
JSON. What was not measured is None or empty, and never a zero.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

Scalar = str | int | float | bool | None
FAMILIES = ("GAN", "VAE", "diffusion", "baseline")
PNG = b"\x89PNG\r\n\x1a\n"
T = TypeVar("T")


class Number(NamedTuple):
    value: float
    low: float | None = None  # 95 % interval over the pictures of this one record
    high: float | None = None
    n: int | None = None  # pictures, or pairs of them, that it was computed from


class Point(NamedTuple):
    """A validation during training."""

    images_seen: int
    seconds: float | None
    flops: float | None
    metrics: dict[str, float]


class Setting(NamedTuple):
    """The same checkpoint, drawn from with other settings."""

    settings: dict[str, Scalar]  # e.g. {"steps": 8, "guidance": 3.0}
    metrics: dict[str, float]
    sample_flops: float | None = None  # per picture
    latency: float | None = None  # seconds per picture, at batch 1


class Cost(NamedTuple):
    images: int | None = None  # seen in training, without the stages' own
    seconds: float | None = None
    # Of training, by part: {"generator": ..., "discriminator": ..., "stages": ...}, or as "model"
    # and "stages" where they were not told apart. No part is in another, so they add up.
    flops: dict[str, float] | None = None
    parameters: dict[str, int] | None = None  # that are trained, by the same parts
    sample_flops: float | None = None  # per picture
    latency: float | None = None  # seconds per picture, at batch 1
    largest_batch: int | None = None
    latency_largest: float | None = None  # seconds per picture, at the largest batch
    peak_memory: int | None = None  # bytes
    energy_wh: float | None = None  # of training, without the stages' own
    co2e_g: float | None = None
    grid: str | None = None  # whose carbon intensity, e.g. "Germany 2024"
    grid_g_per_kwh: float | None = None
    meter: str | None = None  # nvml measures a GPU; codecarbon estimates
    sample_parameters: int | None = None  # of what drawing runs
    sample_wh: float | None = None  # per picture, at the largest batch
    sample_co2e_g: float | None = None
    sample_grid: str | None = None
    sample_grid_g_per_kwh: float | None = None
    sample_meter: str | None = None


class Picture(NamedTuple):
    caption: str
    seed: int
    png: bytes


class Copy(NamedTuple):
    """A drawn picture that lies as near to a training picture as copies do."""

    drawn: bytes
    training: bytes
    caption: str
    distance: float | None = None


class Open(NamedTuple):
    """What is drawn where a prompt leaves an attribute open: counts of its values."""

    prompt: str
    attribute: str
    drawn: dict[str, int]
    training: dict[str, int]


class Record(NamedTuple):
    label: str
    family: str
    seed: int | None  # None for what has no seed, such as a baseline
    checkpoint: str  # "last", "best", or "" for a baseline
    protocol: dict[str, Scalar]  # equal in all records of a report
    settings: dict[str, Scalar]  # equal in all seeds of a label
    metrics: dict[str, dict[str, Number]]  # by split, then by name
    mark: str | None = None  # "chance" or "ceiling": the line that a baseline draws in the charts
    failed: str | None = None  # why there are no numbers; failed runs are counted
    cost: Cost | None = None
    curve: tuple[Point, ...] = ()
    sweep: tuple[Setting, ...] = ()
    wall: tuple[Picture, ...] = ()
    copies: tuple[Copy, ...] | None = None  # None: not looked for
    bias: tuple[Open, ...] = ()
    hits: dict[str, list[int]] | None = None  # by split: 1 for each prompt that was obeyed, else 0

    def to_json(self) -> dict[str, Any]:
        return plain(self)

    @classmethod
    def from_json(cls, told: Any) -> Record:
        """Raises ValueError that says where in the record the mistake is."""
        told = known(cls, told, "the record")
        where = f"the record of {told.get('label')!r}: "
        record = cls(
            **told
            | {
                "metrics": {
                    split: {
                        name: _number(number, f"{where}metrics.{split}.{name}")
                        for name, number in numbers.items()
                    }
                    for split, numbers in told["metrics"].items()
                },
                "cost": None if told.get("cost") is None else _cost(told["cost"], f"{where}cost"),
                "curve": _each(Point, told.get("curve"), f"{where}curve"),
                "sweep": _each(Setting, told.get("sweep"), f"{where}sweep"),
                "wall": _each(Picture, told.get("wall"), f"{where}wall"),
                "copies": None
                if told.get("copies") is None
                else _each(Copy, told["copies"], f"{where}copies"),
                "bias": _each(Open, told.get("bias"), f"{where}bias"),
            }
        )
        for name, value, allowed in (
            ("family", record.family, FAMILIES),
            ("mark", record.mark, (None, "chance", "ceiling")),
        ):
            if value not in allowed:
                raise ValueError(f"{where}{name}={value!r}, expected one of {allowed}")
        return record


def load(path: Path) -> Record:
    try:
        return Record.from_json(json.loads(path.read_bytes()))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def plain(value: Any) -> Any:
    """NamedTuples as objects, bytes as base64."""
    if hasattr(value, "_asdict"):
        return {name: plain(part) for name, part in value._asdict().items()}
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def known(kind: Any, told: Any, where: str) -> dict[str, Any]:
    """`told` if it is an object with the fields of `kind`, and only finite numbers in them."""
    if not isinstance(told, dict):
        raise ValueError(f"{where} is {type(told).__name__}, expected an object")
    missing = set(kind._fields) - set(kind._field_defaults) - set(told)
    unknown = set(told) - set(kind._fields)
    if missing or unknown:
        raise ValueError(
            f"{where}: missing {sorted(missing)}, unknown {sorted(unknown)}; "
            f"a {kind.__name__} has {list(kind._fields)}"
        )
    _finite(told, where)
    return told


def _finite(told: Any, where: str) -> None:
    for name, value in told.items() if isinstance(told, dict) else enumerate(told):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(
                f"{where}.{name}={value}, expected a finite number. Leave out what could not be "
                "measured; a run without numbers says why in `failed`"
            )
        if isinstance(value, dict | list):
            _finite(value, f"{where}.{name}")


def _cost(told: Any, where: str) -> Cost:
    cost = Cost(**known(Cost, told, where))
    # Older records have what drawing runs beside the parts, which it would be added to.
    parts = dict(cost.parameters or {})
    if "drawing" not in parts:
        return cost
    drawing = parts.pop("drawing")
    return cost._replace(parameters=parts or None, sample_parameters=drawing)


def _number(told: Any, where: str) -> Number:
    number = Number(**known(Number, told, where))
    if number.low is not None and number.high is not None and number.low > number.high:
        raise ValueError(f"{where}: low={number.low} lies above high={number.high}")
    return number


def _each(kind: Callable[..., T], told: Any, where: str) -> tuple[T, ...]:
    pictures = {Picture: ("png",), Copy: ("drawn", "training")}.get(kind, ())  # type: ignore[call-overload]
    built = []
    for i, one in enumerate(told or []):
        fields = dict(known(kind, one, f"{where}[{i}]"))
        for name in pictures:
            fields[name] = _png(fields[name], f"{where}[{i}].{name}")
        built.append(kind(**fields))
    return tuple(built)


def _png(told: Any, where: str) -> bytes:
    try:
        data = base64.b64decode(told, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise ValueError(f"{where} is not base64: {error}") from error
    if not data.startswith(PNG):
        raise ValueError(f"{where} is not a PNG file: it begins with {data[:8]!r}")
    return data
