"""Settings: each part owns its own, as a frozen model; this is their common base and the reader of `key=value`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Self, Union, get_args, get_origin

import pydantic
from pydantic.fields import FieldInfo

from labelfree.errors import LabelfreeError, nearest


def listed(value: Any) -> Any:
    """The words between the commas of a text; what is no text, as it is."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


#: Names that a user separates by commas; none in an empty word.
Names = Annotated[tuple[str, ...], pydantic.BeforeValidator(listed)]
#: A share of something.
Share = Annotated[float, pydantic.Field(ge=0, le=1)]
#: Widths of one layer or more.
Widths = Annotated[tuple[pydantic.PositiveInt, ...], pydantic.Field(min_length=1)]


def whole(name: str, value: Any, least: int = 0) -> int:
    """The whole number that a user gave as `name`, of any kind: numpy's, 2.0, or a word, as which YAML reads 1e3.

    Raises:
        LabelfreeError: it is none, or below `least`, or has more than 63 bits.
    """
    try:
        number = Decimal(str(value))
        if least <= number < 2**63 and number == int(number):
            return int(number)
    except ArithmeticError:  # a word, or NaN
        pass
    raise LabelfreeError(
        f"{name}={value} is no whole number from {least} to 2**63 - 1.", f"Give a whole number of {least} or more."
    )


class Settings(pydantic.BaseModel):
    """Base of every settings class: frozen; refused are unknown keys, and numbers that no file of JSON gives back.

    Below each field stands a string of one line, which becomes help and reference text.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
    #: The field, a mapping, that takes keys with a dot which name no owner ("image.size"); none by default.
    inner: ClassVar[str] = ""

    @classmethod
    def read(cls, values: Mapping[str, Any], owner: str) -> Self:
        """Check `values` and build the settings; `owner` names them in errors ("simclr").

        Raises:
            LabelfreeError: one sentence for all faults: each key, what is allowed, what came.
        """
        try:
            return cls.model_validate(
                {key: _from_text(value, cls.model_fields.get(key)) for key, value in values.items()}
            )
        except pydantic.ValidationError as error:
            unknown = [str(fault["loc"][0]) for fault in error.errors() if fault["type"] == "extra_forbidden"]
            hints = [hint for key in unknown if (hint := nearest(key, cls.model_fields))]
            pointer = f"`labelfree list settings {owner}` shows what there is."
            raise LabelfreeError(_explain(error, owner), " ".join([*hints, pointer])) from None


def _from_text(value: Any, field: FieldInfo | None) -> Any:
    """What pydantic cannot tell from a word: "none" where a field may be None, and "a,b" where it is a tuple."""
    if field is None or not isinstance(value, str):
        return value
    union = get_origin(field.annotation) in (Union, UnionType)
    kinds = get_args(field.annotation) if union else (field.annotation,)
    if NoneType in kinds and value.lower() == "none":
        return None
    if str not in kinds and any(get_origin(kind) in (tuple, list) for kind in kinds):
        return listed(value)
    return value


def _explain(error: pydantic.ValidationError, owner: str) -> str:
    faults = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"]) or "value"
        if fault["type"] == "extra_forbidden":
            faults.append(f"{owner} has no setting '{key}'")
        else:
            message = fault["msg"][0].lower() + fault["msg"][1:]
            faults.append(f"{owner} setting '{key}': {message}, but {fault.get('input')!r} was given")
    return "; ".join(faults) + "."


def parse_assignments(words: Sequence[str]) -> dict[str, Any]:
    """`["size=32", "augment=none"]` as a dictionary of strings; pydantic turns them into numbers where they are.

    Raises:
        LabelfreeError: a word without "=".
    """
    values: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise LabelfreeError(f"'{word}' is not a setting: expected key=value.", "For instance batch_size=64.")
        values[key.strip().replace("-", "_")] = value.strip()
    return values


def share_out(values: Mapping[str, Any], owners: Mapping[str, type[Settings]]) -> dict[str, dict[str, Any]]:
    """Give each `key` to the one owner whose settings have it; `owner.key` names the owner outright.

    Args:
        values: flat settings, as a user writes them. A key with a dot that names no owner goes to the part that has an
            inner mapping of settings.
        owners: name of each part ("training", "simclr", "image", ...) and its settings class.

    Raises:
        LabelfreeError: a key that nobody has (with the nearest that exists), that two have, or one given both ways.
    """
    shares: dict[str, dict[str, Any]] = {name: {} for name in owners}
    named: dict[str, dict[str, Any]] = {name: {} for name in owners}
    known = {key for cls in owners.values() for key in cls.model_fields}
    inner = next(((name, cls.inner) for name, cls in owners.items() if cls.inner), None)
    for key, value in values.items():
        prefix, dot, rest = key.partition(".")
        if dot and prefix in owners:
            named[prefix][rest] = value
            continue
        if dot and inner is not None:
            shares[inner[0]].setdefault(inner[1], {})[key] = value
            continue
        takers = [name for name, cls in owners.items() if key in cls.model_fields]
        if not takers:
            where = ", ".join(owners)
            remedy = nearest(key, known) or "`labelfree list settings` shows what there is."
            raise LabelfreeError(f"There is no setting '{key}' in {where}.", remedy)
        if len(takers) > 1:
            choices = " or ".join(f"{taker}.{key}" for taker in takers)
            raise LabelfreeError(f"Setting '{key}' belongs to {' and '.join(takers)}.", f"Write {choices}.")
        shares[takers[0]][key] = value
    for name, given in named.items():
        if twice := sorted(given.keys() & shares[name]):
            raise LabelfreeError(f"'{twice[0]}' and '{name}.{twice[0]}' are one setting, given twice.", "Give one.")
        shares[name] |= given
    return shares
