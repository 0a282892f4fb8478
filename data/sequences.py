"""Data files -> sequences: flattened rows, tensors, or windows of one long series.

Dimensions: N sequences, T time (the longest sequence), D input features, O targets, R rows of a
series, W steps of a window.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from data.config import DataConfig
from data.csv_reader import FLOAT32_MAX, Table, read_table, shown
from data.files import check_file
from data.scaling import Scaling
from spec.errors import DataError
from spec.tensors import decode

STEP = re.compile(r"t(\d+)(?:_(.+))?", re.ASCII)


@dataclass(frozen=True)
class Layout:
    """How the columns of the training file were understood; further files must agree.

    Attributes:
      features: names of a step's features, in order.
      targets: names of the target columns.
      steps: time steps that a row of the training file has room for.
      header: whether the file named its columns.
    """

    features: tuple[str, ...]
    targets: tuple[str, ...]
    steps: int
    header: bool


@dataclass(frozen=True)
class Sequences:
    """Sequences of one file, unscaled.

    Attributes:
      path: the file.
      layout: how its columns were understood.
      inputs: float64 [N, T, D]; NaN past a sequence's end and where a reading is missing.
      lengths: real steps of each sequence, int64 [N].
      targets: text of the targets, a tuple a sequence; None where the file has none. In windows
        the last ones, which lie beyond the series, are missing: fewer than N.
      lines: line (tensor files: row) that each sequence stands on or ends with [N], from 1.
      decimal: decimal point of the targets.
      series: float64 [R, D] that `inputs` is a view of, for windows.
      notes: what the user should hear of.
    """

    path: str
    layout: Layout
    inputs: np.ndarray
    lengths: np.ndarray
    targets: list[tuple[str, ...]] | None
    lines: np.ndarray
    decimal: str
    series: np.ndarray | None
    notes: list[str]

    def __len__(self) -> int:
        return len(self.lengths)

    def place(self, row: int) -> str:
        return f"{self.path}: line {self.lines[row]}"

    def real_steps(self, rows: np.ndarray) -> np.ndarray:
        """Return every reading that the sequences of `rows` hold, [M, D]."""
        if self.series is not None:
            return self.series[rows.min() : rows.max() + self.inputs.shape[1]]
        inputs, steps = self.inputs[rows], np.arange(self.inputs.shape[1])
        return inputs[steps < self.lengths[rows, None]]

    def scaled(self, scaling: Scaling, dtype: str) -> np.ndarray:
        """Return the inputs scaled [N, T, D], 0 past each end and where a reading is missing."""
        if self.series is not None:
            return windows_of(scaling.inputs(self.series, dtype), self.inputs.shape[1])
        return scaling.inputs(self.inputs, dtype)


def read_sequences(
    path: str, config: DataConfig, layout: Layout | None = None, need_targets: bool = True
) -> Sequences:
    """Read a data file.

    Args:
      path: CSV, .npz or .safetensors.
      config: how to read it.
      layout: of the training file, for any further file.
      need_targets: whether a file without targets is refused.

    Raises:
      DataError: the file cannot be read without guessing, or does not agree with `layout`.
    """
    if path.lower().endswith((".npz", ".safetensors")):
        sequences = read_tensors(path, config, need_targets)
    elif config.windows is not None:
        sequences = read_windows(path, config, layout, need_targets)
    else:
        sequences = read_flat(path, config, layout, need_targets)
    if layout is not None and sequences.layout.features != layout.features:
        raise DataError(
            f"{path}: its features are {shown(sequences.layout.features)}, "
            f"the training data's {shown(layout.features)}; bring them into that order"
        )
    return sequences


def choose_targets(path, config, layout, need_targets):
    """Return the function that picks a CSV's target columns."""

    def choose(header: list[str] | None, width: int) -> list[int]:
        wanted = config.target.split(",") if config.target else None
        if header is None and wanted and layout is None:
            raise DataError(
                f"{path}: --target {config.target} names no column, as the file has no header; "
                "add one, or leave --target out to take the last column"
            )
        if header is not None and layout is not None and layout.header:
            wanted = list(layout.targets)
        if header is not None and wanted:
            missing = [name for name in wanted if name not in header]
            if len(missing) == len(wanted) and not need_targets:
                return []
            if missing:
                known = shown(header)
                raise DataError(f'{path}: no column is named "{missing[0]}"; columns: {known}')
            return [header.index(name) for name in wanted]
        count = len(layout.targets) if layout else 1
        if layout and not need_targets:
            row = layout.steps * len(layout.features)
            if width not in (row, row + count):
                raise DataError(
                    f"{path}: has {width} columns; without a header a file needs {row} (without "
                    f"a target) or {row + count} (with), as the training data had"
                )
            count = width - row
        return list(range(width - count, width))

    return choose


def read_flat(
    path: str, config: DataConfig, layout: Layout | None, need_targets: bool
) -> Sequences:
    """Read a CSV with one sequence a row."""
    table = read_table(path, config, choose_targets(path, config, layout, need_targets))
    if not table.names:
        raise DataError(
            f"{path}: 1 column; a sequence and a target need at least 2 (is --delimiter right?)"
        )
    features, note = understand(path, table, config, layout)
    N, D = len(table.lines), len(features)
    inputs = table.numbers.reshape(N, -1, D)
    blank = np.isnan(inputs)
    empty = blank.copy()
    for row, column in table.absent:
        empty[row, column // D, column % D] = False
    filled = ~empty.all(axis=2)
    lengths = np.where(filled.any(axis=1), inputs.shape[1] - filled[:, ::-1].argmax(axis=1), 0)
    if not lengths.all():
        line = table.lines[np.argmin(lengths)]
        raise DataError(f"{path}: line {line}: has no time step; complete or remove the line")
    blank &= (np.arange(inputs.shape[1]) < lengths[:, None])[..., None]
    kept, notes = missing_rows(table, config, blank.reshape(N, -1))
    longest = lengths[kept].max()
    return Sequences(
        path,
        Layout(features, tuple(table.target_names), inputs.shape[1], table.header is not None),
        inputs[kept, :longest] if len(kept) < N or longest < inputs.shape[1] else inputs,
        lengths[kept],
        [table.targets[n] for n in kept] if table.targets else None,
        table.lines[kept],
        config.decimal,
        None,
        [note, *table.notes, *notes],
    )


def understand(
    path: str, table: Table, config: DataConfig, layout: Layout | None
) -> tuple[tuple[str, ...], str]:
    """Name the features of a step, from the header or from `--num_features`; say which."""
    names, count = table.names, config.num_features
    features = named_features(path, table, count) if table.header else None
    if features:
        if count not in (None, len(features)):
            raise DataError(
                f"{path}: --num_features {count}, but the header names {len(features)} features "
                f"a step: {shown(features)}"
            )
        return features, f"features, by the header: {shown(features)}"
    if count is None:
        count = len(layout.features) if layout else 1
    if len(names) % count:
        raise DataError(
            f"{path}: {len(names)} columns beside the target are no multiple of --num_features "
            f"{count}: {len(names)} = {len(names) // count} x {count} + {len(names) % count}"
        )
    features = tuple(f"f{n}" for n in range(count)) if count > 1 else ("value",)
    note = f"columns read as {len(names) // count} steps of {count} (--num_features overrides)"
    return layout.features if layout and len(layout.features) == count else features, note


def named_features(path: str, table: Table, count: int | None) -> tuple[str, ...] | None:
    """Read the features of a step from a header t0, t1 .. or t0_a, t0_b, t1_a ..

    Returns:
      None where no column follows that convention, or `--num_features` is to decide.

    Raises:
      DataError: some columns follow it and some do not, and `--num_features` is silent.
    """
    named = [STEP.fullmatch(name) for name in table.names]
    if not any(named):
        return None
    fault = ""
    if not all(named):
        fault = f'column "{table.names[named.index(None)]}" is not named t0, t1 .. or t0_a, t0_b ..'
    else:
        steps = [int(match[1]) for match in named]
        features = tuple(match[2] or "value" for match in named if int(match[1]) == steps[0])
        expected = [
            (step, name)
            for step in range(steps[0], steps[0] + len(steps) // len(features))
            for name in features
        ]
        if [(int(match[1]), match[2] or "value") for match in named] == expected:
            return features
        fault = f"the header does not name the same features in each step from t{steps[0]} on"
    if count is None:
        raise DataError(f"{path}: {fault}; rename the columns, or say --num_features")
    return None


def missing_rows(
    table: Table, config: DataConfig, missing: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Apply `--missing` to cells [N, C] that are missing; return the rows to keep."""
    every = np.arange(len(missing))
    faulty = missing.any(axis=1)
    if not faulty.any():
        return every, []
    count = int(missing.sum())
    if config.missing == "error":
        first = [
            f'line {table.lines[row]} column "{table.names[column]}"'
            for row in np.flatnonzero(faulty)[:3]
            for column in np.flatnonzero(missing[row])[:3]
        ][:3]
        raise DataError(
            f"{table.path}: {count} missing values inside sequences ({', '.join(first)}"
            f"{', ..' if count > 3 else ''}); fill them, or say --missing drop or --missing mean"
        )
    if config.missing == "mean":
        return every, [f"{count} missing values replaced by their feature's training mean"]
    if faulty.all():
        raise DataError(f"{table.path}: --missing drop leaves no row; every row misses a value")
    return every[~faulty], [f"{int(faulty.sum())} rows with missing values dropped"]


def windows_of(series: np.ndarray, length: int) -> np.ndarray:
    """Cut a series [R, D] into overlapping windows [R - length + 1, length, D], oldest first."""
    return sliding_window_view(series, length, axis=0).swapaxes(1, 2)


def read_windows(
    path: str, config: DataConfig, layout: Layout | None, need_targets: bool
) -> Sequences:
    """Read a CSV with one time step a row, as windows.

    A number that is forecast is itself a feature: its past is known. A label is not.
    """
    labels = config.task == "classification"
    chosen: list[int] = []

    def choose(header: list[str] | None, width: int) -> list[int]:
        chosen.extend(choose_targets(path, config, None, True)(header, width))
        return chosen if labels else []

    table = read_table(path, config, choose)
    columns = table.header or [f"column {n + 1}" for n in range(table.numbers.shape[1])]
    W, R = config.windows, len(table.lines)
    N = R - W + 1
    known = max(R - W - config.horizon + 1, 0)
    if (known if need_targets else N) < 1:
        raise DataError(
            f"{path}: {R} rows are too few for --windows {W} --horizon {config.horizon}; "
            f"{W + config.horizon if need_targets else W} are needed"
        )
    blank = np.isnan(table.numbers)
    if blank.any():
        if config.missing == "drop":
            raise DataError(f"{path}: --missing drop would tear the series; use --missing mean")
        missing_rows(table, config, blank)
    if labels:
        texts = table.targets
    else:
        rows = np.flatnonzero(blank[:, chosen].any(axis=1))
        if rows.size:
            raise DataError(f"{path}: line {table.lines[rows[0]]}: the target is missing")
        texts = [tuple(map(repr, row)) for row in table.numbers[:, chosen].tolist()]
    last = N if not need_targets else known
    names = tuple(table.names) if table.header else tuple(f"f{n}" for n in range(len(table.names)))
    return Sequences(
        path,
        Layout(names, tuple(columns[n] for n in chosen), W, table.header is not None),
        windows_of(table.numbers, W)[:last],
        np.full(last, W),
        texts[W + config.horizon - 1 :] or None,
        table.lines[W - 1 :][:last],
        config.decimal if labels else ".",
        table.numbers[: last + W - 1],
        table.notes,
    )


def read_tensors(path: str, config: DataConfig, need_targets: bool) -> Sequences:
    """Read `inputs` [N, T, D], `targets` [N] or [N, O] and optional `lengths` [N]."""
    check_file(path)
    try:
        if path.lower().endswith(".npz"):
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        else:
            with open(path, "rb") as file:
                arrays = decode(file.read())[0]
    except Exception as error:  # zipfile, zlib and NumPy each raise their own
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: cannot be read: {reason}") from None
    for name in ("inputs", "targets") if need_targets else ("inputs",):
        if name not in arrays:
            raise DataError(f"{path}: has no array {name!r}; it holds {shown(sorted(arrays))}")
    inputs = arrays["inputs"]
    inputs = inputs[..., None] if inputs.ndim == 2 else inputs
    if inputs.ndim != 3 or inputs.dtype.kind not in "fiu" or 0 in inputs.shape:
        raise DataError(
            f"{path}: inputs are {inputs.dtype} {list(inputs.shape)}; expected numbers [N, T, D]"
        )
    N, T, D = inputs.shape
    lengths = arrays.get("lengths", np.full(N, T))
    good = lengths.shape == (N,) and lengths.dtype.kind in "iu"
    if not good or lengths.min() < 1 or lengths.max() > T:
        raise DataError(f"{path}: lengths must be {N} whole numbers from 1 to {T}")
    inputs = inputs.astype(np.float64)
    real = (np.arange(T) < lengths[:, None])[..., None]
    inputs = np.where(real, inputs, np.nan)
    missing = np.isnan(inputs) & real
    if (np.abs(inputs) > FLOAT32_MAX).any():
        raise DataError(f"{path}: inputs hold numbers beyond float32; rescale them")
    names = [f"t{t}_f{d}" for t in range(T) for d in range(D)]
    lines = np.arange(1, N + 1)
    table = Table(path, None, names, inputs.reshape(N, -1), [], [], [], lines)
    kept, notes = missing_rows(table, config, missing.reshape(N, -1))
    targets = arrays.get("targets")
    if targets is not None:
        targets = targets.reshape(N, -1) if targets.ndim < 3 and len(targets) == N else None
        if targets is None or targets.dtype.kind not in "fiubU":
            raise DataError(f"{path}: targets must be numbers or text, [N] or [N, O] with N = {N}")
        texts = [tuple(map(str, row)) for row in targets.tolist()]
    names = ("value",) if D == 1 else tuple(f"f{d}" for d in range(D))
    width = 0 if targets is None else targets.shape[1]
    sequences = Sequences(
        path,
        Layout(
            names,
            ("target",) if width == 1 else tuple(f"target{n}" for n in range(width)),
            T,
            False,
        ),
        inputs,
        lengths.astype(np.int64),
        None if targets is None else texts,
        lines,
        ".",
        None,
        notes,
    )
    return sequences if len(kept) == N else select(sequences, kept)


def select(sequences: Sequences, rows: np.ndarray) -> Sequences:
    """Keep some of the sequences."""
    targets: Sequence | None = sequences.targets
    return replace(
        sequences,
        inputs=sequences.inputs[rows],
        lengths=sequences.lengths[rows],
        targets=[targets[n] for n in rows] if targets else None,
        lines=sequences.lines[rows],
    )
