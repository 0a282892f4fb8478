"""Data files -> sequences: flattened rows, tensors, or windows of one long series.

Dimensions: N sequences, T time (the longest sequence), D input features, O targets, R rows of a
series, W steps of a window.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from data.config import DataConfig
from data.csv_reader import Table, read_head, read_table
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
        Of a series in pieces the line of each step [N, T].
      decimal: decimal point of the targets.
      series: float64 [R, D] that `inputs` is a view of, for windows.
      notes: what the user should hear of; the first says how the columns were understood.
      every_step: each step has targets of its own: `targets` has T times as many, step by step,
        and an output's number is step * O + target. Empty text where a step has none.
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
    every_step: bool = False

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def forecasts(self) -> bool:
        """Whether the targets are later readings of the inputs' own features."""
        own = set(self.layout.targets)
        return self.of_series and bool(own) and own <= set(self.layout.features)

    @property
    def of_series(self) -> bool:
        """Whether the sequences are cut from one series: its windows, or its pieces."""
        return self.series is not None or self.lines.ndim == 2

    @cached_property
    def known_steps(self) -> np.ndarray:
        """Return which real steps [N, T] have all their targets."""
        N, T = self.inputs.shape[:2]
        has = np.array([[bool(text.strip()) for text in row] for row in self.targets])
        return has.reshape(N, T, -1).all(axis=2) & (np.arange(T) < self.lengths[:, None])

    def rows(self) -> tuple[list[tuple[str, ...]], Callable[[int, int], str]]:
        """Return the known targets, a tuple a row, and what says where (row, target) stands.

        Raises:
          DataError: every step could have targets, and none has.
        """
        if not self.every_step:
            return self.targets, self.target_place
        O = len(self.layout.targets)
        at = np.argwhere(self.known_steps).tolist()
        if not at:
            raise DataError(f"{self.path}: no step has its target; fill some in")
        texts = [self.targets[n][t * O : (t + 1) * O] for n, t in at]
        return texts, lambda row, target: self.target_place(at[row][0], at[row][1] * O + target)

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
    O = len(own.targets)  # of every step those of real ones are kept
    return Sequences(
        path,
        own,
        inputs[:, :longest] if len(kept) == N else inputs[kept, :longest],
        lengths,
        [table.targets[n][: longest * O] for n in kept] if O else None,
        lambda n, column: table.target_place(kept[n], column),
        lines,
        config.decimal,
        None,
        [note, *table.notes, *done],
        config.every_step,
    )


def windows_of(series: np.ndarray, length: int) -> np.ndarray:
    """Cut a series [R, D] into overlapping windows [R - length + 1, length, D], oldest first."""
    return sliding_window_view(series, length, axis=0).swapaxes(1, 2)


def read_windows(
    path: str, config: DataConfig, layout: Layout | None, need_targets: bool
) -> Sequences:
    """Read a CSV with one time step a row, as windows, or with `every_step` as pieces.

    A number that is forecast is itself a feature: its past is known. A label is not, nor is a
    number of the same step, `--horizon 0`.
    """
    forecasts = layout is not None and set(layout.targets) <= set(layout.features)
    own = layout and len(layout.features) - forecasts * len(layout.targets)
    choose = choose_targets(path, config, layout, own, need_targets or forecasts)
    table = read_table(read_head(path, config, choose), config)
    columns = table.columns
    if layout is None:
        numeric = any(is_number(text, config.decimal) for row in table.targets for text in row)
        forecasts = config.task == "regression" or (config.task == "auto" and numeric)
        forecasts = forecasts and config.ahead > 0
    series, features = table.numbers, columns.numbers
    if forecasts:
        features = list(range(columns.width))
        series = np.empty((len(table.lines), columns.width))
        series[:, columns.numbers] = table.numbers
        series[:, columns.targets] = numbers(table.targets, table.target_place, config.decimal)
    if not features:
        hint = "" if config.ahead else ", or say --horizon 1 to forecast it"
        if config.task == "classification":
            hint = ", as labels are none, or forecast numbers: --task regression"
        raise DataError(f"{path}: no column beside the target; add features to read{hint}")
    if config.forecast == "path" and not forecasts:
        raise DataError(
            f"{path}: the target is labels; --forecast path is of numbers, leave it out"
        )
    missing = np.isnan(series)
    if missing.any() and config.missing == "drop":
        raise DataError(f"{path}: --missing drop would tear the series; use --missing mean")
    _, done = rows_to_keep(
        path, config.missing, missing, lambda row, column: table.place(row, features[column])
    )
    cut = pieces if config.every_step else windows
    return cut(table, config, series, features, need_targets, done)


def windows(
    table: Table,
    config: DataConfig,
    series: np.ndarray,
    features: list[int],
    need_targets: bool,
    done: list[str],
) -> Sequences:
    """Cut a series [R, D] into overlapping windows, each with its targets."""
    path, columns, W, R = table.path, table.columns, config.windows, len(series)
    ahead = W + config.ahead - 1  # rows from a window's first step to its last target
    first = ahead + 1 - config.path_steps  # and to its first
    count = R - ahead if need_targets else R - W + 1
    if count < 1:
        raise DataError(
            f"{path}: {R} rows are too few for --windows {W} --horizon {config.ahead}; "
            f"{R - count + 1} are needed"
        )
    names, targets = columns.names(features), columns.names(columns.targets)
    note = f"windows of {W} steps of {counted(names)}" + later(targets, config)
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


def later(targets: list[str], config: DataConfig) -> str:
    """Say when the targets of a series are."""
    if not targets:
        return ""
    steps = f"1 to {config.ahead}" if config.path_steps > 1 else config.ahead
    when = f"{steps} step{'s' * (config.ahead > 1)} later" if config.ahead else "at the same step"
    if config.every_step:
        return f"; target {', '.join(targets)} of every step, {when} (--horizon)"
    return f"; target {', '.join(targets)}, {when}"


def pieces(
    table: Table,
    config: DataConfig,
    series: np.ndarray,
    features: list[int],
    need_targets: bool,
    done: list[str],
) -> Sequences:
    """Cut a series [R, D] into pieces, of which the last may be short; each step has its targets.

    They do not overlap, so that no step is counted twice or known from another part.
    """
    columns, R = table.columns, len(series)
    T = min(config.windows, R)
    N = -(-R // T)
    if need_targets and config.ahead >= R:
        raise DataError(
            f"{table.path}: {R} rows are too few for --horizon {config.ahead}; add rows"
        )
    names, targets = columns.names(features), columns.names(columns.targets)
    inputs = np.full((N * T, series.shape[1]), np.nan)
    inputs[:R] = series
    O, blank = len(targets), ("",) * len(targets)
    cells = [*table.targets[config.ahead :], *[blank] * (N * T - R + config.ahead)][: N * T]
    found = [tuple(chain.from_iterable(cells[n : n + T])) for n in range(0, N * T, T)]
    return Sequences(
        table.path,
        Layout(tuple(names), tuple(targets), config.windows, columns.header is not None),
        inputs.reshape(N, T, -1),
        np.minimum(T, R - T * np.arange(N)),
        found if targets else None,
        lambda n, output: table.target_place(n * T + output // O + config.ahead, output % O),
        np.pad(table.lines, (0, N * T - R), mode="edge").reshape(N, T),
        config.decimal,
        None,
        [f"pieces of {T} steps of {counted(names)}{later(targets, config)}", *table.notes, *done],
        every_step=True,
    )


def from_tensors(
    path: str, config: DataConfig, layout: Layout | None, need_targets: bool
) -> Sequences:
    """Read a tensor file; its features have no names, so a further file has to have as many."""
    if config.windows is not None:
        raise DataError(f"{path}: --windows cuts a CSV of one series; tensors are sequences")
    tensors = read_tensors(path, need_targets, config.every_step)
    N, T, D = tensors.inputs.shape
    O = len(tensors.targets[0]) if tensors.targets else 0
    O = O // T if config.every_step else O
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
        lambda n, column: (
            f"{path}: targets[{kept[n]}]" + f" at step {column // O}" * config.every_step
        ),
        kept + 1,
        ".",
        None,
        [f"inputs are {T} steps of {counted(layout.features)}", *done],
        config.every_step,
    )
