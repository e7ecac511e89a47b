"""Settings: what users write is checked at once, shared out to its owner, and refused with the nearest name."""

import numpy as np
import pytest
from pydantic import Field

from labelfree.errors import LabelfreeError, nearest
from labelfree.settings import Names, Settings, parse_assignments, share_out, whole


class Engine(Settings):
    batch_size: int = Field(64, ge=1, description="Samples a step.")
    warmup: float = 0.1


class Picture(Settings):
    size: int = 32
    crop: tuple[float, float] = (0.2, 1.0)
    limit: int | None = 3
    exclude: Names = ()


class Model(Settings):
    size: str = "tiny"
    temperature: float = 0.5


OWNERS = {"training": Engine, "image": Picture, "simclr": Model}


def test_words_become_numbers_by_their_owner() -> None:
    shares = share_out(parse_assignments(["batch-size=32", "temperature = .2"]), OWNERS)
    assert Engine.read(shares["training"], "training").batch_size == 32
    assert Model.read(shares["simclr"], "simclr").temperature == 0.2
    assert shares["image"] == {}


def test_words_become_tuples_and_none_where_the_field_is_one() -> None:
    picture = Picture.read({"crop": "0.5, 1", "limit": "none"}, "image")
    assert picture.crop == (0.5, 1.0)
    assert picture.limit is None


@pytest.mark.parametrize(("text", "names"), [("", ()), (" , ", ()), ("a", ("a",)), ("a,, b,", ("a", "b"))])
def test_names_between_commas_are_never_empty(text: str, names: tuple[str, ...]) -> None:
    assert Picture.read({"exclude": text}, "image").exclude == names


@pytest.mark.parametrize("value", ["inf", float("nan")])
def test_what_a_file_could_not_give_back_is_refused(value: object) -> None:
    with pytest.raises(LabelfreeError, match="setting 'warmup': input should be a finite number"):
        Engine.read({"warmup": value}, "training")


@pytest.mark.parametrize("word", ["batch_size", "=3", "fast"])
def test_a_word_without_a_value_is_refused(word: str) -> None:
    with pytest.raises(LabelfreeError, match="expected key=value"):
        parse_assignments([word])


def test_values_may_hold_an_equals_sign() -> None:
    assert parse_assignments(["path=a=b"]) == {"path": "a=b"}


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(LabelfreeError, match=r"no setting 'batchsize'.*Did you mean 'batch_size'"):
        share_out({"batchsize": 3}, OWNERS)


def test_a_key_of_two_owners_must_name_its_owner() -> None:
    with pytest.raises(LabelfreeError, match=r"image\.size or simclr\.size"):
        share_out({"size": 3}, OWNERS)
    assert share_out({"image.size": 3}, OWNERS)["image"] == {"size": 3}


def test_all_faults_are_told_at_once_with_key_rule_and_value() -> None:
    with pytest.raises(LabelfreeError) as caught:
        Engine.read({"batch_size": 0, "warmup": "long", "batchsize": 1}, "training")
    for part in ("batch_size", "greater than or equal to 1", "but 0 was given", "'long'", "no setting 'batchsize'"):
        assert part in caught.value.problem


def test_settings_cannot_change_after_they_are_read() -> None:
    with pytest.raises(Exception, match="frozen"):
        Engine().warmup = 0.3  # type: ignore[misc]


def test_nearest_is_silent_when_nothing_is_near() -> None:
    assert nearest("zzz", ["batch_size"]) == ""


def test_a_setting_given_with_and_without_its_owner_is_refused() -> None:
    with pytest.raises(LabelfreeError, match=r"'temperature' and 'simclr\.temperature' are one setting"):
        share_out({"temperature": 0.3, "simclr.temperature": 0.2}, OWNERS)


@pytest.mark.parametrize("given", [1000, 1000.0, "1000", "1e3", np.int64(1000), np.float32(1000)])
def test_a_whole_number_may_be_of_any_kind(given: object) -> None:
    found = whole("steps", given, 1)
    assert found == 1000
    assert type(found) is int


@pytest.mark.parametrize("given", [0, -1, 2.5, 2**63, 2**70, "many", "nan", "inf", "1e999999999", True, None, [3]])
def test_what_is_no_whole_number_or_too_large_is_named(given: object) -> None:
    with pytest.raises(LabelfreeError, match=r"steps=.* is no whole number from 1 .* number of 1 or more\."):
        whole("steps", given, 1)
