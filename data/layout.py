"""How the columns of a data file are understood, and whether a further file agrees."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data.config import DataConfig
from data.csv_reader import Columns
from data.header import shown
from spec.errors import DataError
from spec.options import nearest

STEP = re.compile(r"t(\d{1,9})(?:_(.+))?", re.ASCII)


@dataclass(frozen=True)
class Layout:
    """How the columns of the training file were understood; further files must agree.

    Attributes:
      features: names of a step's features, in order.
      targets: names of the target columns.
      steps: time steps that a row of the training file has room for.
      header: whether the file named its columns.
      columns: names of the number columns where the header names no features: a further file must
        have the same, in this order. None otherwise.
      forecast_steps: steps after a window that are forecast, each of them all target columns.
    """

    features: tuple[str, ...]
    targets: tuple[str, ...]
    steps: int
    header: bool
    columns: tuple[str, ...] | None = None
    forecast_steps: int = 1

    @property
    def outputs(self) -> tuple[str, ...]:
        """Name what is predicted: the targets; of a path a+1, b+1, a+2 .., step by step."""
        if self.forecast_steps == 1:
            return self.targets
        steps = range(1, self.forecast_steps + 1)
        return tuple(f"{name}+{step}" for step in steps for name in self.targets)

    @property
    def target_features(self) -> list[int]:
        """Return which feature each target is; for series whose own numbers are forecast."""
        return [self.features.index(name) for name in self.targets]


def choose_targets(
    path: str,
    config: DataConfig,
    layout: Layout | None,
    numbers: int | None,
    need_targets: bool,
) -> Callable[[list[str] | None, int], list[int]]:
    """Return the function that picks a CSV's target columns, from its header and its width.

    Args:
      path: the file, for messages.
      config: `--target`, for the training file.
      layout: of the training file, for any further file.
      numbers: how many number columns a file without header then has.
      need_targets: whether a further file has to have its targets.
    """

    def choose(header: list[str] | None, width: int) -> list[int]:
        if config.every_step and config.windows is None:
            names = layout and list(layout.targets)
            return wanted_at_every_step(path, config.target, names, header, need_targets)
        if layout is None:
            return wanted(path, config.target, header, width)
        if layout.header and header is None:
            raise DataError(f"{path}: has no header, and the training data has one; add it")
        if layout.header:
            missing = [name for name in layout.targets if name not in header]
            if missing and (need_targets or len(missing) < len(layout.targets)):
                raise no_column(path, missing[0], header)
            return [] if missing else [header.index(name) for name in layout.targets]
        count = len(layout.targets)
        if width == numbers and not need_targets:
            return []
        if width != numbers + count:
            without = "" if need_targets else f" ({numbers} without target)"
            raise DataError(
                f"{path}: {width} columns, where the training data, without header, has "
                f"{numbers + count}{without}; give it the same columns"
            )
        return list(range(numbers, width))

    return choose


def wanted(path: str, target: str | None, header: list[str] | None, width: int) -> list[int]:
    """Return the positions of the columns that `--target` names; without it the last.

    Raises:
      DataError: there is no such column, or one is named twice.
    """
    if target is None:
        return [width - 1]
    names = [name.strip() for name in target.split(",")]
    if header is None:
        raise DataError(
            f"{path}: --target {target} names no column, as the file has no header; "
            "add one, or leave --target out to take the last column"
        )
    for name in names:
        if name not in header:
            raise no_column(path, name, header)
        if names.count(name) > 1:
            raise DataError(f'{path}: --target {target} names "{name}" twice; name it once')
    return [header.index(name) for name in names]


def wanted_at_every_step(
    path: str,
    target: str | None,
    names: list[str] | None,
    header: list[str] | None,
    needed: bool,
) -> list[int]:
    """Return the positions of columns t0_y, t1_y .. for targets y, step by step.

    Args:
      path: the file, for messages.
      target: `--target`; without it the last column says which.
      names: the targets of the training file, for any further file.
      header: names of all columns.
      needed: whether a further file has to have them.

    Raises:
      DataError: the header does not name them at the steps that it names.
    """
    if header is None:
        raise DataError(f"{path}: --every_step goes by a header t0_a, t0_y, t1_a ..; add one")
    at = {match.groups(): n for n, name in enumerate(header) if (match := STEP.fullmatch(name))}
    if names is None and target is None:
        last = STEP.fullmatch(header[-1])
        if not (last and last[2]):
            raise DataError(
                f'{path}: --every_step: the last column, "{header[-1]}", is not named t0_y, t1_y '
                "..; rename it, or name the targets by --target"
            )
        names = [last[2]]
    elif names is None:
        names = [name.strip() for name in target.split(",")]
    if not needed and not any(name in names for _, name in at):
        return []
    steps = list(dict.fromkeys(step for step, _ in at))
    for name in names:
        for step in steps or "0":
            if (step, name) not in at:
                raise no_column(path, f"t{step}_{name}", header)
    return [at[step, name] for step in steps for name in names]


def no_column(path: str, name: str, header: list[str]) -> DataError:
    """Say which columns there are."""
    known = f"columns: {shown(header)}"
    return DataError(f'{path}: no column is named "{name}"{nearest(name, header)}; {known}')


def understand(
    path: str, columns: Columns, config: DataConfig, layout: Layout | None
) -> tuple[Layout, str]:
    """Name the features of a step, from the header or from `--num_features`; say which.

    Raises:
      DataError: the columns are no whole number of steps, or do not agree with `layout`.
    """
    names, count = columns.names(columns.numbers), config.num_features
    targets, header = tuple(columns.names(columns.targets)), columns.header is not None
    if config.every_step:
        targets = tuple(dict.fromkeys(STEP.fullmatch(name)[2] for name in targets))
    if layout and layout.columns:
        check_same(path, columns, layout.columns)
    elif header and (layout is None or layout.header):
        features = named_features(path, columns, count)
        if features and count not in (None, len(features)):
            raise DataError(
                f"{path}: --num_features {count}, but the header names {len(features)} features "
                f"a step: {shown(features)}; leave it out, or rename the columns"
            )
        if features:
            steps = len(names) // len(features)
            note = f"columns are {steps} steps of {counted(features)}, by the header"
            return Layout(features, targets, steps, header), note
    if config.every_step:
        raise DataError(
            f"{path}: line {columns.line}: --every_step needs columns t0_a, t0_y, t1_a .., found "
            f"{shown(names)} beside the targets; rename them"
        )
    if count is None:
        count = len(layout.features) if layout else 1
    steps, rest = divmod(len(names), count)
    if rest:
        raise DataError(
            f"{path}: {len(names)} columns beside the target are no multiple of --num_features "
            f"{count}: {len(names)} = {steps} x {count} + {rest}"
        )
    features = tuple(f"f{n}" for n in range(count))
    if layout and not layout.header and len(layout.features) == count:
        features = layout.features  # neither file names them
    guess = "the header is no t0, t1 .." if header else "there is no header"
    why = "by --num_features" if config.num_features else f"as {guess} (--num_features overrides)"
    note = f"columns are {steps} steps of {counted(features)}, {why}"
    return Layout(features, targets, steps, header, tuple(names) if header else None), note


def counted(features: Sequence[str]) -> str:
    """Write "1 feature: a" or "2 features: a, b"."""
    return f"{len(features)} feature{'s' * (len(features) > 1)}: {shown(features)}"


def check_same(path: str, columns: Columns, names: Sequence[str]) -> None:
    """Raise DataError unless the number columns have these names, in this order."""
    found = columns.names(columns.numbers)
    for n, (own, other) in enumerate(zip(found, names, strict=False)):
        if own != other:
            place = f"line {columns.line}, {columns.place(columns.numbers[n])}"
            raise DataError(
                f'{path}: {place}: the training data has "{other}" there; give it the same columns'
            )
    if len(found) != len(names):
        raise DataError(
            f"{path}: {len(found)} columns beside the target, the training data has {len(names)}; "
            "give it the same columns"
        )


def named_features(path: str, columns: Columns, count: int | None) -> tuple[str, ...] | None:
    """Read the features of a step from a header t0, t1 .. or t0_a, t0_b, t1_a ..

    Returns:
      None where no column follows that convention, or `--num_features` is to decide.

    Raises:
      DataError: some columns follow it and some do not, and `--num_features` is silent.
    """
    named = [STEP.fullmatch(name) for name in columns.names(columns.numbers)]
    if not any(named):
        return None
    if None in named:
        odd, fault = named.index(None), "is not named t0, t1 .. or t0_a, t0_b .. as others are"
    else:
        found = [(int(match[1]), match[2] or "value") for match in named]
        first = found[0][0]
        features = tuple(name for step, name in found if step == first)
        steps = range(first, first + -(-len(found) // len(features)))
        expected = [(step, name) for step in steps for name in features]
        if found == expected:
            return None if features == ("value",) and (count or 1) > 1 else features
        odd = next((n for n, pair in enumerate(found) if pair != expected[n]), len(found) - 1)
        fault = f"each step from t{first} on should have {shown(features)}, in this order"
    if count is None:
        place = f"line {columns.line}, {columns.place(columns.numbers[odd])}"
        raise DataError(
            f"{path}: {place}: {fault}; rename or remove the column, or say --num_features "
            "to go by position"
        )
    return None
