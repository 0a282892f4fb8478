"""Data files -> sequences: flattened rows, tensors, or windows of one long series.

Dimensions: N sequences, T time (the longest sequence), D input features, O targets, R rows of a
series, W steps of a window.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from data.config import DataConfig
from data.csv_reader import read_head, read_table
from data.header import shown
from data.layout import Layout, choose_targets, counted, understand
from data.missing import rows_to_keep
from data.numerals import is_number
from data.scaling import Scaling, rows_at_once
from data.targets import numbers
from data.tensor_files import read_tensors
from spec.errors import DataError


@dataclass(frozen=True)
class Sequences:
    """Sequences of one file, unscaled.

    Attributes:
      path: the file.
      layout: how its columns were understood.
      inputs: float64 [N, T, D]; NaN past a sequence's end and where a reading is missing.
      lengths: real steps of each sequence, int64 [N].
      targets: text of `layout.outputs`, a tuple a sequence; None where the file has none. In windows
        the last ones, which lie beyond the series, are missing: fewer than N.
      target_place: says where the target of (sequence, output) stands, file included.
      lines: line that a sequence stands on or a window ends with [N], from 1; of tensors the row.
      decimal: decimal point of the targets.
      series: float64 [R, D] that `inputs` is a view of, for windows.
      notes: what the user should hear of; the first says how the columns were understood.
    """

    path: str
    layout: Layout
    inputs: np.ndarray
    lengths: np.ndarray
    targets: list[tuple[str, ...]] | None
    target_place: Callable[[int, int], str]
    lines: np.ndarray
    decimal: str
    series: np.ndarray | None
    notes: list[str]

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def forecasts(self) -> bool:
        """Whether the targets are later readings of the inputs' own features."""
        return self.series is not None and set(self.layout.targets) <= set(self.layout.features)

    def readings(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Yield what the sequences of `rows` hold [M, D], a part at a time; NaN past their ends."""
        source = self.inputs
        if self.series is not None:  # the windows of `rows` overlap
            source, rows = self.series, np.arange(rows.min(), rows.max() + self.inputs.shape[1])
        many = rows_at_once(source)
        for start in range(0, len(rows), many):
            yield source[rows[start : start + many]].reshape(-1, source.shape[-1])

    def scaled(self, scaling: Scaling, dtype: str) -> np.ndarray:
        """Return the inputs scaled [N, T, D], 0 past each end and where a reading is missing.

        Raises:
          DataError: a reading is too far from the training mean for `dtype`.
        """
        source = self.inputs if self.series is None else self.series
        try:
            scaled = scaling.inputs(source, dtype)
        except OverflowError as error:
            raise DataError(f"{self.path}: {error}") from None
        return scaled if self.series is None else windows_of(scaled, self.inputs.shape[1])


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
        return from_tensors(path, config, layout, need_targets)
    read = read_flat if config.windows is None else read_windows
    sequences = read(path, config, layout, need_targets)
    if layout is not None and sequences.layout.features != layout.features:
        raise DataError(
            f"{path}: its features are {shown(sequences.layout.features)}, "
            f"the training data's {shown(layout.features)}; give it the same columns"
        )
    return sequences


def read_flat(
    path: str, config: DataConfig, layout: Layout | None, need_targets: bool
) -> Sequences:
    """Read a CSV with one sequence a row."""
    room = layout and layout.steps * len(layout.features)
    head = read_head(path, config, choose_targets(path, config, layout, room, need_targets))
    columns = head.columns
    if not columns.numbers:
        raise DataError(
            f"{path}: line {columns.line}: no column beside the target; is it a title, to be "
            "removed? is --delimiter right? one long series needs --windows"
        )
    own, note = understand(path, columns, config, layout)
    table = read_table(head, config)
    N, T, D = len(table.lines), own.steps, len(own.features)
    inputs = table.numbers.reshape(N, T, D)
    lengths = -(-table.filled // D)
    if not lengths.all():
        line = table.lines[np.argmin(lengths)]
        raise DataError(f"{path}: line {line}: has no time step; complete or remove the line")
    missing = np.isnan(inputs) & (np.arange(T) < lengths[:, None])[..., None]
    kept, done = rows_to_keep(
        path,
        config.missing,
        missing.reshape(N, -1),
        lambda row, column: table.place(row, columns.numbers[column]),
    )
    lengths, lines = lengths[kept], table.lines[kept]
    longest = lengths.max()
    return Sequences(
        path,
        own,
        inputs[:, :longest] if len(kept) == N else inputs[kept, :longest],
        lengths,
        [table.targets[n] for n in kept] if own.targets else None,
        lambda n, column: table.target_place(kept[n], column),
        lines,
        config.decimal,
        None,
        [note, *table.notes, *done],
    )


def windows_of(series: np.ndarray, length: int) -> np.ndarray:
    """Cut a series [R, D] into overlapping windows [R - length + 1, length, D], oldest first."""
    return sliding_window_view(series, length, axis=0).swapaxes(1, 2)


def read_windows(
    path: str, config: DataConfig, layout: Layout | None, need_targets: bool
) -> Sequences:
    """Read a CSV with one time step a row, as windows.

    A number that is forecast is itself a feature: its past is known. A label is not.
    """
    forecasts = layout is not None and set(layout.targets) <= set(layout.features)
    own = layout and len(layout.features) - forecasts * len(layout.targets)
    choose = choose_targets(path, config, layout, own, need_targets or forecasts)
    table = read_table(read_head(path, config, choose), config)
    columns = table.columns
    if layout is None:
        numeric = any(is_number(text, config.decimal) for row in table.targets for text in row)
        forecasts = config.task == "regression" or (config.task == "auto" and numeric)
    series, features = table.numbers, columns.numbers
    if forecasts:
        features = list(range(columns.width))
        series = np.empty((len(table.lines), columns.width))
        series[:, columns.numbers] = table.numbers
        series[:, columns.targets] = numbers(table.targets, table.target_place, config.decimal)
    if not features:
        raise DataError(f"{path}: no column beside the label; windows need features to read")
    if config.forecast == "path" and not forecasts:
        raise DataError(
            f"{path}: the target is labels; --forecast path is of numbers, leave it out"
        )
    W, R = config.windows, len(series)
    ahead = W + config.horizon - 1  # rows from a window's first step to its last target
    first = ahead + 1 - config.path_steps  # and to its first
    count = R - ahead if need_targets else R - W + 1
    if count < 1:
        raise DataError(
            f"{path}: {R} rows are too few for --windows {W} --horizon {config.horizon}; "
            f"{R - count + 1} are needed"
        )
    missing = np.isnan(series)
    if missing.any() and config.missing == "drop":
        raise DataError(f"{path}: --missing drop would tear the series; use --missing mean")
    _, done = rows_to_keep(
        path, config.missing, missing, lambda row, column: table.place(row, features[column])
    )
    names, targets = columns.names(features), columns.names(columns.targets)
    steps = f"1 to {config.horizon}" if config.path_steps > 1 else config.horizon
    when = f"{steps} step{'s' * (config.horizon > 1)} later"
    note = f"windows of {W} steps of {counted(names)}"
    note += f"; target {', '.join(targets)}, {when}" if targets else ""
    spans = (table.targets[n + first : n + ahead + 1] for n in range(R - ahead))
    paths = [tuple(chain.from_iterable(span)) for span in spans]
    return Sequences(
        path,
        Layout(
            *(tuple(names), tuple(targets), W, columns.header is not None),
            forecast_steps=config.path_steps,
        ),
        windows_of(series, W)[:count],
        np.full(count, W),
        (paths or None) if targets else None,
        lambda n, output: table.target_place(
            n + first + output // len(targets), output % len(targets)
        ),
        table.lines[W - 1 :][:count],
        config.decimal,
        series[: count + W - 1],
        [note, *table.notes, *done],
    )


def from_tensors(
    path: str, config: DataConfig, layout: Layout | None, need_targets: bool
) -> Sequences:
    """Read a tensor file; its features have no names, so a further file has to have as many."""
    if config.windows is not None:
        raise DataError(f"{path}: --windows cuts a CSV of one series; tensors are sequences")
    tensors = read_tensors(path, need_targets)
    N, T, D = tensors.inputs.shape
    O = len(tensors.targets[0]) if tensors.targets else 0
    if config.num_features not in (None, D):
        raise DataError(f"{path}: inputs have {D} features, not --num_features's; leave it out")
    if layout is None:
        if config.target is not None:
            raise DataError(f"{path}: --target names columns of a CSV; leave it out")
        names = tuple(f"f{d}" for d in range(D))
        targets = ("target",) if O == 1 else tuple(f"target{n}" for n in range(O))
        layout = Layout(names, targets, T, False)
    elif len(layout.features) != D or O not in (0, len(layout.targets)):
        raise DataError(
            f"{path}: {D} features and {O} targets, the training data has "
            f"{len(layout.features)} and {len(layout.targets)}; give it the same"
        )
    missing = np.isnan(tensors.inputs) & (np.arange(T) < tensors.lengths[:, None])[..., None]
    kept, done = rows_to_keep(
        path,
        config.missing,
        missing.reshape(N, -1),
        lambda row, column: f"inputs[{row}, {column // D}, {column % D}]",
    )
    return Sequences(
        path,
        layout if tensors.targets else replace(layout, targets=()),
        tensors.inputs if len(kept) == N else tensors.inputs[kept],
        tensors.lengths[kept],
        [tensors.targets[n] for n in kept] if tensors.targets else None,
        lambda n, column: f"{path}: targets[{kept[n]}]",
        kept + 1,
        ".",
        None,
        [f"inputs are {T} steps of {counted(layout.features)}", *done],
    )
