"""Reading graphs: edge lists with node tables, arrays, JSON, PyTorch Geometric; and what of it is a feature."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from labelfree.data.columns import (
    IDENTITY_NAMES,
    called_like_label,
    distinct,
    is_moment,
    is_number,
    numbers,
    plain,
    require,
    with_numbers,
)
from labelfree.data.graphs import Graphs
from labelfree.data.sources import ARRAYS, TABLES, column_values, frame, list_files, load_arrays, read_head, read_table
from labelfree.errors import LabelfreeError
from labelfree.files import existing
from labelfree.modalities.graph.items import MOST_WORDS, Found, many

#: Names under which the two ends of an edge are known.
ENDS = (
    ("source", "target"),
    ("src", "dst"),
    ("from", "to"),
    ("head", "tail"),
    ("sender", "receiver"),
    ("node1", "node2"),
    ("u", "v"),
)
#: Columns that name nodes.
KEYS = ("id", "node", "node_id", "name")
#: Columns that say which graph a node, or an edge, is in.
OF_GRAPH = ("graph", "graph_id", "batch")


#: Files that may hold graphs one by one, and those that only say something about others beside them.
JSON, BESIDE = (".json", ".jsonl"), ("", ".md", ".txt")


@dataclass(frozen=True)
class Column:
    """A feature: `width` numbers, or one of `words`."""

    name: str
    width: int = 1
    words: tuple[str, ...] = ()

    def encode(self, values: np.ndarray) -> np.ndarray:
        """(N, F) float32: the numbers, or a 1 in the place of the word; nothing but zeros for one not seen before."""
        if not self.words:
            try:
                return np.asarray(values, dtype=np.float32).reshape(len(values), -1)
            except ValueError:
                raise LabelfreeError(
                    f"Column '{self.name}' holds words, and not numbers as in training.", "Give it as numbers."
                ) from None
        place = {word: number for number, word in enumerate(self.words)}
        codes = np.array([place.get(_word(value), -1) for value in values.tolist()])
        return (codes[:, None] == np.arange(len(self.words))).astype(np.float32)


@dataclass(frozen=True)
class GraphOptions:
    """How a source of graphs is to be read.

    Attributes:
        columns, exclude: columns of nodes and edges that are features, and that are not; empty to find them.
        ends: the two columns that name an edge's ends; empty to find them.
        of_nodes, of_edges: features of the training data, where an encoder has been trained already.
    """

    columns: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    of_nodes: tuple[Column, ...] | None = None
    of_edges: tuple[Column, ...] | None = None


@dataclass(frozen=True)
class Opened:
    """Graphs, and which columns their features are."""

    graphs: Graphs
    of_nodes: tuple[Column, ...]
    of_edges: tuple[Column, ...]


def read_graphs(source: Any, options: GraphOptions) -> Opened:
    """Open a source of graphs.

    Raises:
        LabelfreeError: missing, of another kind, without edges, or with an edge to a node that does not exist.
    """
    found = _find(source, options)
    label = f"'{source}'" if isinstance(source, str | Path) else "The source"
    if not len(found.of):
        raise LabelfreeError(f"{label} has no node.", "Give an edge list, or a table of nodes beside it.")
    of_nodes, left_out = _features(found.nodes, options, options.of_nodes, found.codes)
    of_edges, left_too = _features(found.edges, options, options.of_edges, found.codes)
    if unused := [name for name in options.columns if name not in {*found.nodes, *found.edges}]:
        raise LabelfreeError(
            f"{label} has no column '{unused[0]}'.", f"It has {', '.join([*found.nodes, *found.edges])}."
        )
    facts = {"left out": ", ".join([*left_out, *left_too])} if left_out or left_too else {}
    graphs = _mended(found, _matrix(found.nodes, of_nodes, len(found.of)), of_edges, facts, label)
    return Opened(graphs, of_nodes, of_edges)


def _find(source: Any, options: GraphOptions) -> Found:
    if isinstance(source, str | Path):
        path = existing(source)
        path = only_file(path) or path
        if path.is_dir():
            return _folder(path, options)
        if path.suffix.lower() in ARRAYS:
            return _arrays(load_arrays(path))
        if (graphs := _json_graphs(path)) is not None:
            return many(graphs)
        return _tables(read_table(path), None, None, options)
    if (table := frame(source)) is not None:
        return _tables(table, None, None, options)
    if isinstance(source, Mapping):
        return _arrays({name: np.asarray(value) for name, value in source.items()})
    if hasattr(source, "edge_index"):
        return many([_of_geometric(source)])
    if hasattr(source, "__getitem__") and hasattr(source, "__len__") and len(source):
        items = [source[number] for number in range(len(source))]
        return many([_of_geometric(item) if hasattr(item, "edge_index") else item for item in items])
    raise LabelfreeError(
        f"{type(source).__name__} holds no graph.", "Give edges, arrays, or a PyTorch Geometric data set."
    )


# ---- tables


def parts_of(folder: Path) -> dict[str, Path]:
    """The tables of a folder by what they are of: "edges", "nodes", "graphs"."""
    tables = {path.stem.lower(): path for path in sorted(folder.iterdir()) if path.suffix.lower() in TABLES}
    spelled = {"edges": ("edges", "edge", "links"), "nodes": ("nodes", "node", "vertices"), "graphs": ("graphs",)}
    return {part: tables[name] for part, names in spelled.items() for name in names if name in tables}


def only_file(folder: Path) -> Path | None:
    """The file of arrays or JSON that is all there is in a folder, but for words about it; None for another folder."""
    files = [path for path in list_files(folder) if path.suffix.lower() not in BESIDE] if folder.is_dir() else []
    return files[0] if len(files) == 1 and files[0].suffix.lower() in (*ARRAYS, *JSON) else None


def _folder(folder: Path, options: GraphOptions) -> Found:
    parts = parts_of(folder)
    if "edges" not in parts:
        raise LabelfreeError(
            f"'{folder}' has no table of edges, nor is one file of arrays or JSON all it holds.",
            "Put edges.csv (and nodes.csv) there, or name the file.",
        )
    tables = {part: read_table(path) for part, path in parts.items()}
    return _tables(tables["edges"], tables.get("nodes"), tables.get("graphs"), options)


def ends_of(table: pa.Table, wanted: Sequence[str] = ()) -> tuple[str, str] | None:
    """The columns that name the two ends of an edge, or None."""
    if wanted:
        require(table, wanted, "ends")
        if len(wanted) != 2:
            raise LabelfreeError(f"ends names {len(wanted)} columns: expected two.", "For instance ends=payer,payee.")
        return wanted[0], wanted[1]
    names = {plain(name): name for name in table.column_names}
    return next(((names[a], names[b]) for a, b in ENDS if a in names and b in names), None)


def _tables(edges: pa.Table, nodes: pa.Table | None, graphs: pa.Table | None, options: GraphOptions) -> Found:
    ends = ends_of(edges, options.ends)
    if ends is None:
        if edges.num_columns != 2:
            raise LabelfreeError(
                f"The edges' table has {', '.join(edges.column_names[:12])}: no pair of columns names two ends.",
                "Name them: ends=from_account,to_account.",
            )
        ends = (edges.column_names[0], edges.column_names[1])
    a, b = (pc.cast(edges.column(name), pa.string()).combine_chunks() for name in ends)
    tied = pc.fill_null(pc.and_(pc.not_equal(a, ""), pc.not_equal(b, "")), False)
    loose = len(edges) - (pc.sum(tied).as_py() or 0)
    if loose:
        edges, a, b = (each.filter(tied) for each in (edges, a, b))
    if nodes is None:
        ids, of = pc.unique(pa.chunked_array([a, b])), None
        ids = ids.take(pc.sort_indices(ids))
    else:
        key = _key_column(nodes, a)
        ids, of = pc.cast(nodes.column(key), pa.string()).combine_chunks(), _of_graph(nodes)
        if len(pc.unique(ids)) < len(ids):
            raise LabelfreeError(f"The nodes' table has repeats in its column '{key}'.", "Keep one row a node.")
    places = [pc.fill_null(pc.index_in(end, value_set=ids), -1).to_numpy() for end in (a, b)]
    found = Found(np.stack(places, axis=1).astype(np.int64), np.zeros(len(ids), np.int64), _codes(ids.to_pylist()))
    found.loose = loose
    unknown = (found.ends < 0).any(axis=1)
    if unknown.any():
        row = int(unknown.argmax())
        found.unknown = str((a if found.ends[row, 0] < 0 else b)[row])
    found.names = np.array(ids.to_pylist(), dtype=object)
    found.edges = _columns_of(edges, ends, options.of_edges)
    if nodes is not None:
        found.nodes = _columns_of(nodes, (), options.of_nodes)
    if of is not None:
        _sort_by_graph(found, of, graphs)
    return found


def _columns_of(table: pa.Table, but: Sequence[str], learnt: Sequence[Column] | None = ()) -> dict[str, np.ndarray]:
    """The columns of a table, numbers written as text as numbers; `learnt` are those that an encoder knows."""
    table = with_numbers(table.drop_columns(list(but)), [column.name for column in learnt or () if not column.words])
    decimal = {field.name for field in table.schema if pa.types.is_decimal(field.type)}
    return {name: (numbers if name in decimal else column_values)(table, name) for name in table.column_names}


def _key_column(nodes: pa.Table, ends: pa.Array) -> str:
    """The nodes' column that edges name: the one called id, or the first whose values most ends are among."""
    for name in nodes.column_names:
        if plain(name) in KEYS:
            return str(name)
    some = ends.slice(0, 1000)
    for name in nodes.column_names:
        if pc.sum(pc.is_in(some, value_set=pc.cast(nodes.column(name), pa.string()).combine_chunks())).as_py():
            return str(name)
    raise LabelfreeError("No column of the nodes' table holds the names that the edges use.", "Call it id.")


def _of_graph(nodes: pa.Table) -> np.ndarray | None:
    name = next((name for name in nodes.column_names if plain(name) in OF_GRAPH), None)
    return None if name is None else column_values(nodes, name)


def _sort_by_graph(found: Found, of: np.ndarray, graphs: pa.Table | None) -> None:
    """Put the nodes of each graph together, the graphs in the order of their numbers or else of their names."""
    known, number = distinct(of)
    names = np.array([str(name) for name in known.tolist()], dtype=object)
    order = np.argsort(number, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    found.of, found.code = number[order], found.code[order]
    found.names = None if found.names is None else found.names[order]
    found.ends = np.where(found.ends < 0, found.ends, place[found.ends])
    found.nodes = {name: values[order] for name, values in found.nodes.items() if plain(name) not in OF_GRAPH}
    found.graphs, found.total = {"graph": names}, len(names)
    if graphs is not None:
        key = next((name for name in graphs.column_names if plain(name) in ("id", *OF_GRAPH)), graphs.column_names[0])
        rows = {str(value): row for row, value in enumerate(graphs.column(key).to_pylist())}
        taken = graphs.take(pa.array([rows.get(name) for name in names.tolist()], pa.int64()))
        found.graphs |= _columns_of(taken, (key,))


# ---- arrays, and graphs one by one


def _arrays(arrays: Mapping[str, np.ndarray]) -> Found:
    """`edge_index` (2, M) or (M, 2); `x` (N, F); `graph` (N,); any other array is a column of what it is as long as."""
    own = dict(arrays)
    pairs = next((own.pop(name) for name in ("edge_index", "edges", "edge_list") if name in own), None)
    if pairs is None or pairs.ndim != 2 or 2 not in pairs.shape or pairs.dtype.kind not in "iu":
        shape = "none" if pairs is None else f"{pairs.shape} of {pairs.dtype}"
        raise LabelfreeError(
            f"There is no array of edges: expected edge_index (2, M) of whole numbers, found {shape}.",
            "Give node numbers from 0 on.",
        )
    ends = (pairs.T if pairs.shape[0] == 2 else pairs).astype(np.int64)
    of = next((own.pop(name) for name in OF_GRAPH if name in own), None)
    features = own.pop("x", own.pop("features", None))
    given = [values for values in (features, of, own.get("y")) if values is not None]
    count = len(given[0]) if given else int(ends.max(initial=-1)) + 1
    found = Found(ends, np.zeros(count, np.int64), np.arange(count, dtype=np.uint64))
    bad = (ends < 0) | (ends >= count)
    if bad.any():
        found.unknown, found.ends = str(ends[bad][0]), np.where(bad, -1, ends)
    if features is not None:
        found.nodes["x"] = features
    graphs = 1 if of is None else len(np.unique(of))
    for name, values in own.items():
        level = {len(ends): found.edges, graphs: found.graphs, count: found.nodes}.get(len(np.atleast_1d(values)))
        if level is not None and values.ndim:
            level[name] = values
    if of is not None:
        others = found.graphs
        _sort_by_graph(found, of, None)
        found.graphs |= others
    return found


def _json_graphs(path: Path, first: bool = False) -> list[Any] | None:
    """The list of graphs that a JSON file holds, or None where it holds no such list; `first`: of JSON lines, one."""
    if path.suffix.lower() not in JSON:
        return None
    try:
        with path.open(encoding="utf-8-sig") as file:
            if path.suffix.lower() == ".json":
                graphs = json.load(file)
            else:
                graphs = [json.loads(line) for line in islice(file, 1 if first else None)]
    except (ValueError, OSError) as error:
        raise LabelfreeError(f"'{path}' cannot be read as JSON: {error}.", "Check that it is whole.") from None
    graphs = [graphs] if isinstance(graphs, dict) else graphs
    whole = (
        isinstance(graphs, list)
        and graphs
        and all(isinstance(g, dict) and ("edges" in g or "links" in g) for g in graphs)
    )
    return graphs if whole else None


def _of_geometric(data: Any) -> dict[str, Any]:
    """A PyTorch Geometric `Data` as the same dictionary that JSON gives; nothing of the package is needed."""
    own = {key: np.asarray(data[key]) for key in data.keys() if hasattr(data[key], "shape")}  # noqa: SIM118
    graph: dict[str, Any] = {"edges": own.pop("edge_index").T, "count": int(data.num_nodes)}
    for key, name in (("x", "nodes"), ("edge_attr", "edge_attributes")):
        if key in own:
            graph[name] = own.pop(key)
    return graph | {key: value.item() if value.size == 1 else value for key, value in own.items()}


# ---- choosing and mending


def _features(
    columns: Mapping[str, np.ndarray],
    options: GraphOptions,
    learnt: tuple[Column, ...] | None,
    codes: frozenset[str],
) -> tuple[tuple[Column, ...], list[str]]:
    """Which columns are features, and the words for those that are left out."""
    if learnt is not None:
        if missing := [column.name for column in learnt if column.name not in columns]:
            has = ", ".join(columns) or "no columns"
            raise LabelfreeError(
                f"The source lacks '{missing[0]}', which the encoder was trained with: it has {has}.",
                "Give it the same columns.",
            )
        return learnt, []
    chosen, left = [], []
    numeric = [name for name, values in columns.items() if values.ndim == 1 and values.dtype.kind in "fiu"]
    for name, values in columns.items():
        if name in options.exclude or (options.columns and name not in options.columns):
            continue
        label = called_like_label(name, numeric)
        column = None if not options.columns and label else _column(name, values, codes)
        if column is None:
            left.append(f"{name} ({'looks like a label' if label else 'no feature'})")
        else:
            chosen.append(column)
    return tuple(chosen), left


def _column(name: str, values: np.ndarray, codes: frozenset[str]) -> Column | None:
    """What kind of feature a column is; None for names, moments and what has too many different words."""
    kind = values.dtype.kind
    if name not in codes and kind in "fiu" and plain(name) not in IDENTITY_NAMES:
        return None if plain(name).endswith("mask") else Column(name, values.shape[1] if values.ndim > 1 else 1)
    if kind == "M" or values.ndim > 1 or plain(name).endswith("mask") or plain(name) in (*IDENTITY_NAMES, *KEYS):
        return None
    words = sorted({_word(value) for value in values.tolist()} - {""})
    return (
        Column(name, len(words), tuple(words))
        if 1 < len(words) <= MOST_WORDS and (kind != "i" or name in codes)
        else None
    )


def _matrix(columns: Mapping[str, np.ndarray], chosen: Sequence[Column], count: int) -> np.ndarray:
    if not chosen:
        return np.zeros((count, 0), dtype=np.float32)
    out = np.concatenate([column.encode(columns[column.name]) for column in chosen], axis=1)
    out[~np.isfinite(out)] = np.nan
    return out


def _mended(
    found: Found, features: np.ndarray, of_edges: tuple[Column, ...], facts: dict[str, str], label: str
) -> Graphs:
    """Loops and repeats left out and counted; edges that lead nowhere refused, or, among many graphs, their graph."""
    ends, count = found.ends, len(found.of)
    lost, broken = (ends < 0).any(axis=1), dict(found.broken)
    known = ends[lost].max(axis=1)  # the other end says which graph it is
    if lost.any() and (found.total == 1 or known.min() < 0):
        raise LabelfreeError(
            f"{label} has {int(lost.sum()):,} edge(s) to a node that does not exist, such as '{found.unknown}'.",
            "Add it to the nodes, or leave its edges out.",
        )
    kept = ~lost
    broken |= dict.fromkeys(found.of[known].tolist(), "an edge leads to a node that does not exist")
    across = np.zeros(len(ends), dtype=bool)
    across[kept] = found.of[ends[kept, 0]] != found.of[ends[kept, 1]]
    if across.any():
        raise LabelfreeError(
            f"{label} has {int(across.sum()):,} edge(s) from one graph to another.", "Correct the graph of its nodes."
        )
    loops = kept & (ends[:, 0] == ends[:, 1])
    rows = np.flatnonzero(kept & ~loops)
    pairs = np.sort(ends[rows], axis=1)
    _, once = np.unique(pairs[:, 0] * np.int64(max(count, 1)) + pairs[:, 1], return_index=True)
    edges, rows = pairs[once], rows[once]
    if not len(edges):
        raise LabelfreeError(
            f"{label} has no edge between two different nodes.", "Without edges it is a table: modality=table."
        )
    first = np.searchsorted(found.of, np.arange(found.total + 1))
    for number in np.flatnonzero(np.diff(first) == 0).tolist():
        broken.setdefault(number, "it has no node")
    if found.loose:
        facts["edges with an empty end left out"] = f"{found.loose:,}"
    if loops.any():
        facts["loops left out"] = f"{int(loops.sum()):,}"
    if _repeats(ends[kept & ~loops]):
        facts["repeated edges merged"] = f"{_repeats(ends[kept & ~loops]):,}"
    return Graphs(
        features,
        edges,
        _matrix({name: values[rows] for name, values in found.edges.items()}, of_edges, len(edges)),
        first,
        np.searchsorted(found.of[edges[:, 0]], np.arange(found.total + 1)),
        found.code,
        found.names,
        {
            "node": found.nodes,
            "edge": {name: values[rows] for name, values in found.edges.items()},
            "graph": found.graphs,
        },
        broken,
        facts,
    )


def _repeats(ends: np.ndarray) -> int:
    """Edges that stand there more than once in one direction."""
    return len(ends) - len(np.unique(ends, axis=0))


def _codes(names: Sequence[Any]) -> np.ndarray:
    """(N,) uint64 from names: whole numbers as they are, others by a hash."""
    words = [str(name) for name in names]
    return np.array(
        [int(word) if word.isdecimal() and len(word) < 19 else zlib.crc32(word.encode()) for word in words],
        dtype=np.uint64,
    )


def _word(value: Any) -> str:
    return "" if value is None or value != value else str(value)


# ---- recognising


def looks_like_graph(source: Any) -> tuple[float, str]:
    """How sure that `source` is graphs, and the words for it."""
    if isinstance(source, str | Path):
        return _path_looks(Path(source).expanduser())
    if hasattr(source, "edge_index"):
        return 0.95, "a PyTorch Geometric graph"
    if isinstance(source, Mapping):
        return (0.95, "an array of edges") if {"edge_index", "edge_list"} & set(source) else (0.0, "")
    if (table := frame(source, 100)) is not None:
        return _table_looks(table)
    if not isinstance(source, bytes) and hasattr(source, "__getitem__") and hasattr(source, "__len__") and len(source):
        first = source[0] if not hasattr(source, "shape") else None
        if hasattr(first, "edge_index"):
            return 0.95, f"{len(source):,} PyTorch Geometric graphs"
        if isinstance(first, Mapping) and {"edges", "links"} & set(first):
            return 0.9, f"{len(source):,} graphs"
    return 0.0, ""


def _path_looks(path: Path) -> tuple[float, str]:
    try:
        if path.is_dir():
            parts = parts_of(path)
            if "edges" not in parts:
                only = only_file(path)
                sure, words = _path_looks(only) if only else (0.0, "")
                return (sure, f"{words} in '{only.name}'") if only and sure else (0.0, "")
            sure, words = _table_looks(read_head(parts["edges"]))
            return 0.95 if sure or "nodes" in parts else 0.3, f"{words or 'edges'} in '{parts['edges'].name}'"
        if path.suffix.lower() == ".npz":
            return (0.95, "an array of edges") if "edge_index" in load_arrays(path) else (0.0, "")
        if path.suffix.lower() in JSON:
            return (0.95, "graphs as JSON") if _json_graphs(path, first=True) else (0.0, "")
        if path.suffix.lower() in TABLES:
            return _table_looks(read_head(path))
    except LabelfreeError:
        return 0.0, ""
    return 0.0, ""


def _table_looks(table: pa.Table) -> tuple[float, str]:
    ends = ends_of(table)
    if ends is None:
        return 0.0, ""
    timed = any(
        is_moment(f.type) or (is_number(f.type) and plain(f.name) in ("t", "ts", "time", "timestamp"))
        for f in table.schema
    )
    words = f"a table of edges from {ends[0]} to {ends[1]}"
    return (0.5, f"{words}, its times unused") if timed else (0.95, words)
