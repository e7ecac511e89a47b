"""Tables: what columns are, missing and unseen values, corruption, masks, typed predictions — row by row."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from labelfree import registry
from labelfree.data.batch import Batch
from labelfree.data.cache import Cached
from labelfree.data.draw import Draw
from labelfree.errors import LabelfreeError
from labelfree.files import infinite
from labelfree.modalities.base import Budget, hidden_count
from labelfree.modalities.table import Table, TableDataset, TableSettings
from labelfree.tasks.labels import Subset
from labelfree.training.plan import recognise

COUNT = 60


def source(count: int = COUNT) -> pa.Table:
    """A row of every kind of column, one value in ten missing."""
    rng = np.random.default_rng(0)

    def gaps(values: list[Any]) -> list[Any]:
        return [None if rng.random() < 0.1 else value for value in values]

    words = ["red apple", "green pear", "blue plum", "old yellow quince"]
    return pa.table(
        {
            "id": [f"u{i:05}" for i in range(count)],
            "row": np.arange(count),
            "height": gaps(rng.normal(170, 10, count).tolist()),
            "colour": gaps(rng.choice(["red", "green", "blue"], count).tolist()),
            "member": gaps((rng.random(count) < 0.3).tolist()),
            "flag": rng.integers(0, 2, count),
            "born": gaps([date(1990, 1, 1) + timedelta(days=int(d)) for d in rng.integers(0, 9000, count)]),
            "when": [f"2024-03-{d:02} {d // 2:02}:30:00" for d in rng.integers(1, 29, count)],
            "note": [f"{rng.choice(words)} {rng.choice(words)} {i}" for i in range(count)],
            "amount": gaps([f"{v:.2f}" for v in rng.lognormal(size=count)]),
            "always": ["same"] * count,
            "empty": [None] * count,
            "target": rng.integers(0, 2, count),
        }
    )


def fitted(table: Any = None, **own: Any) -> tuple[Table, TableDataset]:
    modality = Table(TableSettings.read(own, "table"))
    dataset = modality.open(source() if table is None else table)
    modality.fit(dataset)
    return modality, dataset


def batch_of(dataset: TableDataset, rows: list[int]) -> Batch:
    return dataset.collated()[torch.tensor(rows)]


def draw_of(batch: Batch, step: int = 0) -> Draw:
    return Draw.start(7, 0, step, batch.index)


def test_columns_are_typed_and_what_says_nothing_is_left_out_with_the_reason() -> None:
    _, dataset = fitted()
    kinds = {column.name: column.kind for column in dataset.fields.columns}
    assert kinds == {
        "height": "number",
        "colour": "category",
        "member": "boolean",
        "flag": "boolean",
        "born": "date",
        "when": "date",
        "note": "text",
        "amount": "number",
    }
    facts = dataset.describe().facts
    for words in ("id: identifier", "row: numbers the rows", "always: constant", "empty: holds no value"):
        assert words in facts["left out"]
    assert "target: named like a label" in facts["left out"]
    assert "amount: numbers written as text" in facts["noted"]
    own = [field.name for field in dataset.fields.all if field.column == "born"]
    assert own == ["born", "born: month", "born: weekday"]
    assert "when: hour" in [field.name for field in dataset.fields.all]


def test_y_is_a_label_but_beside_x_and_z() -> None:
    axes = {name: np.random.default_rng(number).normal(size=COUNT) for number, name in enumerate("xyz")}
    assert [column.name for column in fitted(pa.table(axes))[1].fields.columns] == ["x", "y", "z"]
    beside = {**axes, "z": ["walk", "run"] * (COUNT // 2)}
    assert [column.name for column in fitted(pa.table(beside))[1].fields.columns] == ["x", "z"]


def test_a_user_says_what_columns_are() -> None:
    _, dataset = fitted(categories="flag", exclude="note,when", most_values=2)
    kinds = {column.name: column for column in dataset.fields.columns}
    assert "note" not in kinds
    assert len(kinds["colour"].values) == 2
    assert "colour: 2 of 3 values are told apart" in dataset.describe().facts["noted"]
    chosen = fitted(columns="height,row")[1].fields.columns
    assert [(column.name, column.kind) for column in chosen] == [("height", "number"), ("row", "number")]


def test_numbers_that_a_frame_keeps_as_categories_are_categories() -> None:
    shops = pa.array(np.arange(60) * 7 % 40)
    _, dataset = fitted(pa.table({"plain": shops, "shop": shops.dictionary_encode(), "x": np.arange(60.0) ** 2}))
    assert dataset.describe().facts["category"] == "shop (40)"


def test_hugging_face_datasets_are_tables_of_their_columns() -> None:
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is an extra")
    rows = {"age": list(range(40)), "city": ["Rome", "Oslo"] * 20, "income": [i % 7 / 2 for i in range(40)]}
    dataset = datasets.Dataset.from_dict(rows)
    assert recognise(dataset)[0] == "table"
    for given in (dataset, dataset.with_format("torch"), dataset.select(range(40))):
        opened = Table().open(given)
        assert len(opened) == 40
        assert [sample.index for sample in opened.read([0, 39])] == [0, 39]
    with pytest.raises(LabelfreeError, match="splits train, test"):
        recognise(datasets.DatasetDict(train=dataset, test=dataset))
    with pytest.raises(LabelfreeError, match="streamed"):
        recognise(dataset.to_iterable_dataset())


def test_missing_and_unseen_values_are_input_like_any_other() -> None:
    modality, _ = fitted()
    other = source(3).set_column(3, "colour", pa.array(["violet", None, " red "]))
    found = modality.open(other.set_column(2, "height", pa.array([None, 170, 180])))
    names = [field.name for field in found.fields.all]
    colour, height = found.values[:, names.index("colour")], found.values[:, names.index("height")]
    known = found.fields.all[names.index("colour")].values
    assert colour[0] == 0
    assert np.isnan(colour[1])
    assert known[int(colour[2]) - 1] == "red"
    assert np.isnan(height[0])
    for name in ("mlp:tiny", "transformer:nano"):
        encoder = registry.build_encoder(name, modality).eval()
        assert encoder(modality.prepare(found.collated())).pooled.isfinite().all()


def test_values_far_outside_of_training_are_clipped_however_large() -> None:
    modality, dataset = fitted()
    batch = dataset.collated()
    far = batch.data[:4].clone()
    far[:, 0] = torch.tensor([1e25, -1e25, 3e38, -3e38])
    found = modality.prepare(batch.with_(data=far)).data[:, 0]
    torch.testing.assert_close(found, torch.tensor([3.0, -3.0, 3.0, -3.0]))


@pytest.mark.parametrize("size", [1e30, 1e38, 1e39, 1e300])
def test_numbers_however_large_have_statistics_that_can_be_written(size: float) -> None:
    table = pa.table({"a": np.arange(60.0) % 7, "b": size * (np.arange(60.0) - 30)})
    data, dataset = fitted(table)
    assert infinite(data.state()) is None
    values = data.prepare(batch_of(dataset, [0, 30, 59])).data
    assert values.isfinite().all()
    assert (values.diff(dim=0)[:, [field.name for field in data.fields.all].index("b")] > 0).all()


def test_dates_are_days_months_weekdays_and_hours() -> None:
    moments = ["2024-02-29 13:30:00", "1969-12-31 23:00:00", "2024-03-01 00:00:00", None] * 6
    _, dataset = fitted({"when": pa.array(moments), "x": np.arange(24) % 7 * 1.5})
    found = dict(zip([field.name for field in dataset.fields.all], dataset.values.T, strict=True))
    assert found["when"][0] == pytest.approx(19782.5625)
    assert [found[f"when: {part}"][i] for i in (0, 1) for part in ("month", "weekday", "hour")] == [2, 4, 14, 12, 3, 24]
    assert np.isnan(found["when: hour"][3])


@pytest.mark.parametrize("nothing", [pa.nulls(1), pa.array([""]), pa.array([None], pa.timestamp("s"))])
def test_a_row_without_its_date_is_read(nothing: pa.Array) -> None:
    modality, _ = fitted()
    row = source().slice(3, 1).set_column(6, "born", nothing)
    missing = np.isnan(modality.open(row).values[0])
    assert [field.name for field in modality.fields.all if field.column == "born"] == [
        name for name, absent in zip(modality.open(row).value_names, missing, strict=True) if absent
    ]


def test_truth_values_are_known_however_they_are_spelt() -> None:
    modality, dataset = fitted()
    place = [field.name for field in dataset.fields.all].index("member")
    words = pa.array(["?" if value is None else str(value) for value in source().column("member").to_pylist()])
    other = modality.open(source().set_column(4, "member", words))
    np.testing.assert_array_equal(other.values[:, place], dataset.values[:, place])


@pytest.mark.parametrize("unit", [1e-15, 1e-25])
def test_the_unit_of_numbers_does_not_matter(unit: float) -> None:
    values = np.arange(60.0) ** 2 % 37
    modality, dataset = fitted(pa.table({"a": values, "b": unit * values}))
    found = modality.prepare(dataset.collated()).data
    torch.testing.assert_close(found[:, 1], found[:, 0])


def test_what_was_learnt_travels_and_another_source_must_have_the_columns() -> None:
    modality, dataset = fitted()
    again = Table()
    again.load_state(modality.state())
    view, other = modality.prepare(dataset.collated()), again.prepare(again.open(source()).collated())
    torch.testing.assert_close(view.data, other.data, equal_nan=True)
    torch.testing.assert_close(modality.fields.marginals, again.fields.marginals, equal_nan=True)
    with pytest.raises(LabelfreeError, match=r"The trained encoder names the column 'height'"):
        again.open(source().drop_columns(["height"]))
    with pytest.raises(
        LabelfreeError, match=r"'height' holds string, most of which are no numbers\. .* train with categories=height"
    ):
        again.open(source().set_column(2, "height", pa.array(["tall"] * COUNT)))


def test_labels_are_columns_that_the_encoder_does_not_see() -> None:
    _, dataset = fitted()
    assert "target" in dataset.columns()
    assert set(dataset.column("target").tolist()) == {0, 1}
    with pytest.raises(LabelfreeError, match=r"'colour' is a feature, which the encoder sees.*exclude=colour"):
        dataset.column("colour")
    with pytest.raises(LabelfreeError, match=r"no column 'targt'.*Did you mean 'target'"):
        dataset.column("targt")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"x": [1.5, 2.0, 3.0]}, "has one column, 'x', and a table takes at least two.* --modality series"),
        ({"x": [1.5, 2.0, 3.0], "one": [1, 1, 1]}, r"1 column to learn from \(one: constant\).* Add columns"),
        (
            {"id": [f"a{i}" for i in range(30)], "key": [f"b{i}" for i in range(30)]},
            "no columns to learn .*id: identifier.* columns=id,key",
        ),
        ({"a": [1, 1, 1], "b": [2, 2, 2]}, "a: constant; b: constant"),
        ({"x": [None, None], "y": [None, None]}, "holds no value"),
    ],
)
def test_a_table_that_says_nothing_is_refused(table: Any, words: str) -> None:
    with pytest.raises(LabelfreeError, match=words):
        Table().open(table)


def test_a_category_of_very_many_values_keeps_the_frequent_ones() -> None:
    codes = [f"c{i % 5000}" if i % 3 else "often" for i in range(15_000)]
    modality, dataset = fitted({"code": codes, "x": np.random.default_rng(0).normal(size=15_000)})
    assert modality.target_dim == 1 + 257
    assert dataset.fields.columns[0].values[0] == "often"


# ---- views


def test_a_view_depends_on_the_row_alone() -> None:
    modality, dataset = fitted()
    whole = batch_of(dataset, list(range(12)))
    view = modality.view(whole, draw_of(whole))
    for row in range(12):
        alone = batch_of(dataset, [row])
        torch.testing.assert_close(
            view.data[row : row + 1], modality.view(alone, draw_of(alone, step=3)).data, equal_nan=True
        )
    torch.testing.assert_close(modality.view(whole, draw_of(whole), "light").data, modality.prepare(whole).data,
                               equal_nan=True)  # fmt: skip


def test_corruption_changes_as_many_columns_as_it_says_to_values_of_the_marginals() -> None:
    rng = np.random.default_rng(0)
    table = {f"x{i}": rng.normal(size=500) ** 3 for i in range(10)}
    modality, dataset = fitted(table, corrupt=0.6)
    batch = dataset.collated()
    changed = modality.view(batch, draw_of(batch)).data != modality.prepare(batch).data
    assert (changed.sum(dim=1) <= 6).all()
    assert changed.sum(dim=1).float().mean() > 5.9
    assert (changed.float().mean(dim=0) - 0.6).abs().max() < 0.1
    donors = modality._donors(modality.prepare(batch), draw_of(batch))
    assert torch.isin(donors, modality.prepare(batch).data).all()
    for share in (0.25, 0.5, 0.75):
        below = (donors < modality.prepare(batch).data.quantile(share, dim=0)).float().mean(dim=0)
        assert (below - share).abs().max() < 0.08


def test_what_a_column_is_exchanged_for_is_a_value_that_it_has() -> None:
    """A date of donors is one of the dates, a text one of the texts, not months of one with weekdays of another."""
    modality, dataset = fitted(source(300))
    view = modality.prepare(dataset.collated())
    donors = modality._donors(view, draw_of(view))
    for number, column in enumerate(modality.fields.columns):
        own = modality.fields.column == number
        known, drawn = ({tuple(row) for row in x[:, own].nan_to_num(-99.0).tolist()} for x in (view.data, donors))
        assert drawn <= known, column.name
        assert len(drawn) > 0.3 * len(known)


def test_fields_of_one_column_are_corrupted_together() -> None:
    modality, dataset = fitted(corrupt=0.5)
    batch = dataset.collated()
    corrupted = modality._corrupted(batch, draw_of(batch))
    for column in range(len(modality.fields.columns)):
        own = corrupted[:, modality.fields.column == column]
        assert (own == own[:, :1]).all()


# ---- masks and predictions


@pytest.mark.parametrize("ratio", [0.15, 0.5])
def test_masks_hide_the_share_asked_for_in_whole_columns_but_one(ratio: float) -> None:
    modality, dataset = fitted()
    view = modality.prepare(dataset.collated())
    mask = modality.sample_mask(view, draw_of(view), ratio)
    assert (mask.sum(dim=1) == hidden_count(mask.shape[1], ratio)).all()
    known = ~view.data.isnan()
    cut = torch.stack([
        (mask | ~known)[:, modality.fields.column == c].float().mean(dim=1) for c in range(len(modality.fields.columns))
    ])  # fmt: skip
    whole = known.all(dim=1)
    assert (((cut > 0) & (cut < 1)).sum(dim=0)[whole] <= 1).all()


def test_swapped_values_are_those_of_other_rows_and_the_rest_stays() -> None:
    modality, dataset = fitted(swap=1.0)
    view = modality.prepare(dataset.collated())
    mask = modality.sample_mask(view, draw_of(view), 0.3)
    shown, left = modality.hide(view, mask, draw_of(view))
    assert not left.any()
    torch.testing.assert_close(shown.data[~mask], view.data[~mask], equal_nan=True)
    assert not torch.equal(shown.data[mask].nan_to_num(-9), view.data[mask].nan_to_num(-9))


def test_a_prediction_is_right_for_each_kind_of_field_and_missing_costs_nothing() -> None:
    modality, dataset = fitted()
    view = modality.prepare(dataset.collated())
    target = modality.targets(view)
    sizes = [1] * modality.fields.numbers + modality.fields.sizes
    start = np.cumsum([0, *sizes])
    right = torch.zeros(len(view), len(sizes), modality.target_dim)
    for field, first in enumerate(start[:-1]):
        value = view.data[:, field].nan_to_num()
        if field < modality.fields.numbers:
            right[:, field, first] = value
        else:
            right[torch.arange(len(view)), field, first + value.long()] = 50.0
    loss = modality.token_loss(right, target)
    assert loss.abs().max() < 1e-4
    even = modality.token_loss(torch.zeros_like(right), target)
    categories = even[:, modality.fields.numbers :][~view.data[:, modality.fields.numbers :].isnan()]
    torch.testing.assert_close(categories, torch.ones_like(categories))
    assert (even[view.data.isnan()] == 0).all()


# ---- encoders


def test_the_mlp_sums_the_tokens_that_the_transformer_reads() -> None:
    from labelfree.modalities.table.fields import TableStem

    modality, dataset = fitted()
    view = modality.prepare(dataset.collated())
    stem = TableStem(modality.fields, 16)
    torch.nn.init.normal_(stem.missing)
    torch.testing.assert_close(stem.total(view.data), stem(view)[0].sum(dim=1), atol=1e-4, rtol=1e-4)
    hidden = draw_of(view).bernoulli("h", 0.3, len(modality.fields))
    gone = view.with_(data=view.data.masked_fill(hidden, float("nan")))
    torch.testing.assert_close(stem.total(view.data, hidden), stem(gone)[0].sum(dim=1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spec", ["mlp:tiny", "transformer:nano"])
def test_a_hidden_value_cannot_be_seen(spec: str) -> None:
    modality, dataset = fitted()
    view = modality.prepare(batch_of(dataset, [0, 1, 2, 3]))
    mask = modality.sample_mask(view, draw_of(view), 0.4)
    other = view.with_(data=torch.where(mask, torch.ones_like(view.data), view.data))
    encoder = registry.build_encoder(spec, modality).eval()
    torch.testing.assert_close(encoder(view, mask).tokens, encoder(other, mask).tokens)
    assert not torch.allclose(encoder(view).tokens, encoder(other).tokens)


def test_sizes_of_the_mlp_are_named_in_errors() -> None:
    with pytest.raises(LabelfreeError, match=r"no mlp size 'bse'.*Did you mean 'base'"):
        registry.build_encoder("mlp:bse", fitted()[0])


# ---- the rest


def test_a_table_in_memory_is_not_taken_apart() -> None:
    modality, dataset = fitted()
    assert torch.equal(Cached(dataset, modality).whole.data.nan_to_num(), torch.from_numpy(dataset.values).nan_to_num())
    part = Subset(dataset, np.array([5, 3]))
    samples = modality.collate(part.read([0, 1]))  # type: ignore[arg-type]
    torch.testing.assert_close(part.collated().data, samples.data, equal_nan=True)
    assert part.collated().index.tolist() == samples.index.tolist() == [0, 1]


def test_groups_are_the_same_in_every_source() -> None:
    modality, dataset = fitted(group="colour")
    assert "colour" not in [column.name for column in dataset.fields.columns]
    other = modality.open(source().slice(10))
    assert other.group.tolist() == dataset.group[10:].tolist()
    assert len(np.unique(dataset.group)) == 4  # three colours, and none


def test_raw_features_are_finite_and_know_the_training_part_alone() -> None:
    modality, dataset = fitted()
    train, test = Subset(dataset, np.arange(40)), Subset(dataset, np.arange(40, COUNT))
    found, others = modality.raw_features(train, [test])
    assert (len(found), len(others), others.shape[1]) == (40, 20, found.shape[1])
    assert np.isfinite(found).all()
    wide, _ = fitted({"c": [f"v{i % 900}" for i in range(2000)], "x": np.arange(2000) % 7 / 3}, most_values=1000)
    (sparse,) = wide.raw_features(wide.open({"c": ["v1", "odd"], "x": [0.5, 1.0]}), [])
    assert sparse.shape == (2, 902)
    assert sparse.toarray()[:, 1:].sum(axis=1).tolist() == [1, 1]


def test_a_row_is_shown_as_names_and_values_escaped() -> None:
    table = source().rename_columns(["id", "row", "<b>", *source().column_names[3:]])
    modality, dataset = fitted(table)
    shown = [modality.show(sample) for sample in dataset.read(range(8))]  # type: ignore[arg-type]
    assert all("&lt;b&gt;" in words and "<b>" not in words for words in shown)
    assert any("green" in words for words in shown)


@pytest.mark.parametrize(
    ("given", "sure"),
    [
        (source(), True),
        (pa.table({f"V{i}": np.random.default_rng(i).normal(size=400) for i in range(1, 20)}), True),
        (pa.table({f"t{i}": np.random.default_rng(0).normal(size=400).cumsum() + i for i in range(1, 20)}), False),
        (pa.table({"x": np.sin(np.arange(400) / 9), "y": np.cos(np.arange(400) / 9)}), False),
        (np.zeros((4, 9)), False),
        (["some", "words"], False),
    ],
)
def test_tables_are_told_from_series(given: Any, sure: bool) -> None:
    assert (Table.recognise(given)[0] >= 0.8) == sure


def test_states_and_devices_beside_measurements_make_no_table_of_a_series() -> None:
    rng = np.random.default_rng(0)
    times = [f"2024-01-01 {i // 60:02}:{i % 60:02}:00" for i in range(400)]
    log = {"device": ["a"] * 200 + ["b"] * 200, "timestamp": times, "temp": rng.normal(size=400).cumsum()}
    log |= {"vibration": rng.normal(size=400).cumsum(), "state": np.repeat(rng.choice(["idle", "run"], 20), 20)}
    assert recognise(pa.table(log))[0] == "series"
    log["temp"] = ["#DIV/0!", *map(str, log["temp"][1:])]
    assert recognise(pa.table(log))[0] == "series"


def test_rows_sorted_by_class_are_a_table() -> None:
    rng = np.random.default_rng(0)
    sizes = {f"x{i}": rng.normal(size=150) + np.repeat(rng.normal(size=3), 50) * 3 for i in range(5)}
    assert recognise(pa.table(sizes)) == ("table", "a table of 5 columns (5 numbers), neighbouring rows alike")


def test_a_group_that_is_no_column_is_named() -> None:
    with pytest.raises(LabelfreeError, match=r"no column 'colur' in the source: .*Did you mean 'colour'"):
        Table(TableSettings(group="colur")).open(source())


def test_unrelated_rows_of_a_number_and_very_many_words_are_a_table() -> None:
    generator = np.random.default_rng(0)
    noise = generator.normal(size=20_000)
    words = [f"v{number}" for number in generator.integers(0, 100_000, len(noise))]
    names = [f"v{number}" for number in range(len(noise))]
    mixed = pa.table({"c": words, "x": noise})
    assert recognise(mixed) == ("table", "a table of 2 columns (1 number, 1 left out), neighbouring rows unrelated")
    assert Table().open(mixed).describe().facts["category"] == "c (256)"
    assert recognise(pa.table({"c": words, "x": noise.cumsum()}))[0] == "series"
    assert recognise(pa.table({"c": [f"thing {word}" for word in words], "x": noise}))[0] == "table"
    assert recognise(pa.table({"c": [f"all that is said of {word}" for word in words], "x": noise}))[0] == "text"
    assert recognise(pa.table({"time": names, "x": noise}))[0] == "series"
    with pytest.raises(LabelfreeError, match=r"1 column to learn from \(c: identifier.* columns=x,c"):
        Table().open(pa.table({"c": names, "x": noise}))
    assert len(Table(TableSettings(columns=("x", "c"))).open(pa.table({"c": names, "x": noise}))) == len(noise)


def test_defaults_give_reasons_and_settings_that_exist() -> None:
    modality, dataset = fitted()
    for choice in modality.defaults(dataset.describe(), Budget(600, 1e11, False)):
        assert choice.reason
        assert choice.key in {"method", "encoder", "batch_size", *TableSettings.model_fields}
