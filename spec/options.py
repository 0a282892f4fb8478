"""Options as dataclass fields: one declaration gives the flag, its help, its type and its range."""

import math
from collections.abc import Callable
from dataclasses import Field, field, fields
from difflib import get_close_matches
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from spec.errors import ConfigError


def option(
    default: Any, help: str, allowed: str = "", check: Callable[[Any], bool] = lambda value: True
) -> Any:
    """Declare a dataclass field that is also a flag.

    Args:
      default: its value when nobody says otherwise.
      help: one line for `--help` and for the comments of a printed configuration.
      allowed: the accepted values in words, for the error message.
      check: tells whether a value of the right type is accepted. NaN never reaches it.
    """
    return field(default=default, metadata={"help": help, "allowed": allowed, "check": check})


def option_of(owner: type, name: str) -> Field:
    """Declare an option as another dataclass does."""
    declared = owner.__dataclass_fields__[name]
    return field(default=declared.default, metadata=declared.metadata)


def types_of(owner: type) -> dict[str, tuple[tuple[Any, ...], bool]]:
    """Resolve each option to (its accepted types or its choices, whether None is accepted)."""
    resolved = {}
    for name, hint in get_type_hints(owner).items():
        members = [hint] if get_origin(hint) in (None, Literal) else list(get_args(hint))
        choices = tuple(c for m in members for c in (get_args(m) or (m,)) if c is not NoneType)
        resolved[name] = (choices, NoneType in members)
    return resolved


def nearest(word: str, known: list[str]) -> str:
    """Return " (did you mean ...?)" when a known word is close, else nothing."""
    close = get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def expectation(owner: type, item: Field) -> str:
    """Say in words which values an option takes."""
    kinds, optional = types_of(owner)[item.name]
    if isinstance(kinds[0], str):
        words = "one of " + ", ".join(kinds)
    else:
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        words = item.metadata["allowed"] or names[kinds[0]]
    return words + (", or none" if optional else "")


def from_text(owner: type, item: Field, text: str) -> Any:
    """Read an option's value as a command line or a YAML scalar writes it.

    Raises:
      ConfigError: the text is not of the option's type.
    """
    kinds, optional = types_of(owner)[item.name]
    if optional and text.lower() in ("none", "null"):
        return None
    try:
        if kinds[0] is bool:
            return {"true": True, "yes": True, "false": False, "no": False}[text.lower()]
        return text if isinstance(kinds[0], str) else kinds[0](text)
    except (ValueError, KeyError):
        raise ConfigError(f"--{item.name} {text!r}: expected {expectation(owner, item)}") from None


def validate(options: Any) -> None:
    """Check every option of a dataclass instance against its type and range.

    Raises:
      ConfigError: names the first option at fault, its value and what is allowed.
    """
    kinds_of = types_of(type(options))
    for item in fields(options):
        value, (kinds, optional) = getattr(options, item.name), kinds_of[item.name]
        if value is None and optional:
            continue
        if isinstance(kinds[0], str):
            good, hint = value in kinds, nearest(str(value), list(kinds))
        else:
            accepted = (int, float) if kinds[0] is float else kinds
            good = isinstance(value, accepted) and (isinstance(value, bool) == (kinds[0] is bool))
            good = good and not (isinstance(value, float) and math.isnan(value))
            good, hint = good and item.metadata.get("check", lambda value: True)(value), ""
        if not good:
            expected = expectation(type(options), item)
            raise ConfigError(f"--{item.name} {value!r}: expected {expected}{hint}")


def subset(owner: type, options: Any) -> dict[str, Any]:
    """Pick from a larger set of options those that `owner` declares, by name."""
    return {f.name: getattr(options, f.name) for f in fields(owner) if hasattr(options, f.name)}
