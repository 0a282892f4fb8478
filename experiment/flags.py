"""Flags and YAML files <-> dataclasses of options."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields
from typing import Any, NoReturn

from spec import __version__
from spec.errors import ConfigError
from spec.options import expectation, from_text, nearest, types_of


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are a ConfigError."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message.removeprefix("argument "))


def parser_for(owner: type, description: str) -> Parser:
    """Make a parser with a flag for every option, grouped by the class that declares it."""
    parser = Parser(description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"seqduet {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    declared: set[str] = set()
    for group in reversed(owner.__mro__):
        own = [f for f in fields(group) if f.name not in declared] if group is not object else []
        if own:
            section = parser.add_argument_group((group.__doc__ or "").splitlines()[0])
            for item in own:
                add_flag(section, owner, item)
        declared |= {f.name for f in own}
    return parser


def add_flag(section: argparse._ArgumentGroup, owner: type, item: Field) -> None:
    """Add one option; its text is converted later, in one place for flags and files."""
    kinds, _ = types_of(owner)[item.name]
    default = "none" if item.default is None else str(item.default).lower()
    help = f"{item.metadata['help']} [{default}]".replace("%", "%%")
    if kinds[0] is bool:
        section.add_argument(f"--{item.name}", nargs="?", const="true", metavar="BOOL", help=help)
        section.add_argument(
            f"--no_{item.name}",
            dest=item.name,
            action="store_const",
            const="false",
            help=argparse.SUPPRESS,
        )
    else:
        named = "{" + ",".join(kinds) + "}" if isinstance(kinds[0], str) else kinds[0].__name__
        metavar = {"int": "N", "float": "X", "str": "TEXT"}.get(named, named)
        section.add_argument(f"--{item.name}", metavar=metavar, help=help)


def parse(
    parser: Parser, owner: type, argv: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parse a command line; dashes and underscores in a flag's name are the same.

    Returns:
      options of `owner` that were given, converted; the command's other flags as parsed.

    Raises:
      ConfigError: a flag is unknown or its value malformed. Ranges are checked by `owner`.
    """
    given, unknown = parser.parse_known_args(spell(argv))
    if unknown:
        name = unknown[0].partition("=")[0]
        if not name.startswith("-"):
            raise ConfigError(f"{name}: is no flag; name a data file as --data_path {name}")
        known = [flag for action in parser._actions for flag in action.option_strings]
        raise ConfigError(f"{name}: no such flag{nearest(name, known)}; --help lists all")
    items = {f.name: f for f in fields(owner)}
    options = {
        name: from_text(owner, items[name], text)
        for name, text in vars(given).items()
        if name in items
    }
    return options, {name: value for name, value in vars(given).items() if name not in items}


def spell(argv: Sequence[str]) -> list[str]:
    """Write a command line as argparse reads it: underscores in names, --lr=-1 for --lr -1."""
    spelled: list[str] = []
    for word in argv:
        name, equals, value = word.partition("=")
        if name.startswith("--") and len(name) > 2:
            spelled.append("--" + name[2:].replace("-", "_") + equals + value)
        elif word[:1] == "-" and word != "-h" and spelled and spelled[-1].startswith("--"):
            spelled[-1] += "=" + word  # no flag starts with one dash, so it is a value
        else:
            spelled.append(word)
    return spelled


def read_yaml(path: str, owner: type) -> dict[str, Any]:
    """Read options from a YAML file of `name: value` lines.

    Raises:
      ConfigError: the file is unreadable or no such mapping; a key is unknown, stands twice, or
        its value is malformed. The message names the line.
    """
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            root = yaml.compose(file, Loader=yaml.SafeLoader)
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}: line {mark.line + 1}" if mark else path
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{place}: not YAML: {reason}") from None
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}: expected lines of the form name: value")
    items = {f.name: f for f in fields(owner)}
    options: dict[str, Any] = {}
    for key, value in root.value:
        place = f"{path}: line {key.start_mark.line + 1}"
        name = str(key.value)
        if name not in items:
            raise ConfigError(f"{place}: no option {name!r}{nearest(name, list(items))}")
        if name in options:
            raise ConfigError(f"{place}: {name} stands twice")
        kinds, optional = types_of(owner)[name]
        null = value.tag == "tag:yaml.org,2002:null"
        if not isinstance(value, yaml.ScalarNode) or (null and not optional):
            found = "nothing" if null else "a list or mapping"
            expected = expectation(owner, items[name])
            raise ConfigError(f"{place}: {name}: expected {expected}, found {found}")
        # In quotes it is text, be it a column whose name is none.
        literal = value.style is not None and kinds == (str,)
        try:
            text = value.value
            options[name] = (
                None if null else text if literal else from_text(owner, items[name], text)
            )
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from None
    return options


def to_yaml(options: Any) -> str:
    """Write options as YAML, each with its help."""
    import yaml

    lines = []
    for item in fields(options):
        value = getattr(options, item.name)
        if isinstance(value, str):
            text = yaml.safe_dump(value, default_style='"', allow_unicode=True, width=2**31)
        else:
            text = json.dumps(value)
        lines.append(f"{item.name}: {text.rstrip()}  # {item.metadata['help']}")
    return "\n".join(lines) + "\n"


def changes(old: Mapping[str, Any], new: Mapping[str, Any], names: set[str]) -> list[str]:
    """List the options among `names` that differ, as "name: old -> new"."""
    return [
        f"{name}: {old[name]} -> {new[name]}"
        for name in old
        if name in names and name in new and old[name] != new[name]
    ]
