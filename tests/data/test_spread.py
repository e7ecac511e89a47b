"""Some samples of many, from all over a source."""

import pytest

from labelfree.data.spread import MOST_SHARDS, spaced, spread


@pytest.mark.parametrize(
    ("count", "most", "found"), [(10, 4, [0, 3, 6, 9]), (3, 8, [0, 1, 2]), (1, 5, [0]), (0, 5, [])]
)
def test_indices_rise_from_the_first_to_the_last(count: int, most: int, found: list[int]) -> None:
    assert spaced(count, most).tolist() == found


def test_of_many_shards_few_are_opened() -> None:
    size = 100
    shards = range(0, 1000 * size, size)
    found = spread(1000 * size, shards, 256)
    assert found == sorted(set(found))
    assert len({index // size for index in found}) == MOST_SHARDS
    assert 200 < len(found) <= 256
    assert spread(1000 * size, [0], 256) == spaced(1000 * size, 256).tolist()
