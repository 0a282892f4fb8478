"""How a data file is to be read and divided."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spec.errors import ConfigError
from spec.options import option, validate

SAMPLES = Path(__file__).parent / "samples"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Data"""

    data_path: str | None = option(
        None, "CSV, .npz or .safetensors to train on; none: a bundled sample"
    )
    test_path: str | None = option(None, "file to test on; none: a part of --data_path")
    task: Literal["auto", "regression", "classification"] = option(
        "auto", "what the target is; auto decides and says why"
    )
    target: str | None = option(None, "target column, or several as a,b; none: the last column")
    num_features: int | None = option(
        None,
        "features of each time step, where the header does not say",
        "a whole number >= 1",
        lambda n: n >= 1,
    )
    windows: int | None = option(
        None,
        "read one long series, a row a step, and cut windows of this many steps",
        "a whole number >= 1",
        lambda n: n >= 1,
    )
    every_step: bool = option(
        False,
        "a target at every step: columns t0_a, t0_y, t1_a .. with --target y; --windows then cuts "
        "pieces, each row with its own; tensors [N, T] or [N, T, O]; empty where unknown",
    )
    horizon: int | None = option(
        None,
        "steps from a window's end, or from each of its steps, to the target; none: 1, with "
        "--every_step 0",
        "a whole number >= 0",
        lambda n: n >= 0,
    )
    forecast: Literal["last", "path"] = option(
        "last", "of --windows: the target at --horizon, or the path, which is every step up to it"
    )
    split: Literal["auto", "random", "time"] = option(
        "auto", "random (classes in proportion), or time: the last rows; auto: time for --windows"
    )
    valid_fraction: float = option(
        0.15,
        "part of the training rows kept for validation; 0 for none",
        "a number, 0 <= valid_fraction < 1",
        lambda x: 0 <= x < 1,
    )
    test_fraction: float = option(
        0.15,
        "part of the rows kept for the test, without --test_path",
        "a number, 0 < test_fraction < 1",
        lambda x: 0 < x < 1,
    )
    missing: Literal["error", "drop", "mean"] = option(
        "error", "a missing feature inside a sequence: stop, drop the row, or take the mean"
    )
    delimiter: str = option(
        ",",
        "between cells; tab for a tab",
        "one character that no number contains, or tab",
        lambda d: d == "tab" or (len(d) == 1 and d not in "0123456789+-.eE\"'\r\n\0"),
    )
    decimal: Literal[".", ","] = option(".", "decimal point")
    header: Literal["auto", "yes", "no"] = option("auto", "whether the first line names columns")

    def __post_init__(self) -> None:
        validate(self)
        if self.delimiter == self.decimal:
            raise ConfigError("--decimal ',': needs another --delimiter, for instance ';'")
        if self.windows is not None and self.split == "random":
            raise ConfigError(
                "--split random: windows overlap, so a random split would show the test's values "
                "to the training; use --split time"
            )
        if self.windows is not None and self.num_features is not None:
            raise ConfigError("--num_features: with --windows every column is a feature; omit it")
        if self.windows is None and self.horizon not in (None, 1):
            raise ConfigError(f"--horizon {self.horizon}: needs --windows")
        if self.forecast == "path" and self.windows is None:
            raise ConfigError("--forecast path: needs --windows; without, name targets by --target")
        if self.forecast == "path" and (self.every_step or self.ahead == 0):
            other = "--every_step" if self.every_step else "--horizon 0"
            raise ConfigError(f"--forecast path: leaves no room for {other}; leave one out")
        if self.forecast == "path" and self.task == "classification":
            raise ConfigError("--forecast path: is of numbers; leave out --task classification")

    @property
    def path_steps(self) -> int:
        """Steps that are forecast from a window."""
        return self.ahead if self.forecast == "path" else 1

    @property
    def ahead(self) -> int:
        """Rows from a window's end to its target, or with `every_step` from each of its rows."""
        return (1 - self.every_step) if self.horizon is None else self.horizon

    @property
    def separator(self) -> str:
        """The character between cells."""
        return "\t" if self.delimiter == "tab" else self.delimiter

    @property
    def files(self) -> tuple[str, str | None]:
        """Paths of the training and the test file; those of the bundled sample where none is given."""
        if self.data_path is not None:
            return self.data_path, self.test_path
        train, test = (SAMPLES / f"japanese_vowels_{part}.csv" for part in ("train", "test"))
        return str(train), self.test_path or str(test)

    @property
    def in_time(self) -> bool:
        """Whether the parts follow each other in the order of the file."""
        return self.split == "time" or (self.split == "auto" and self.windows is not None)
