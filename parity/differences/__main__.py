"""Render the atlas, run one entry, or check all: see `parity.differences`."""

import argparse
import sys
from difflib import get_close_matches

from parity.differences import DIFFERENCES
from parity.differences.entry import run
from parity.differences.render import DOCUMENT, document, entry


def main() -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m parity.differences", description=__doc__)
    parser.add_argument("name", nargs="?", help="run this entry and print it")
    parser.add_argument("--check", action="store_true", help="run all, compare the document")
    options = parser.parse_args()
    if options.name and options.name not in DIFFERENCES:
        near = get_close_matches(options.name, DIFFERENCES, n=3, cutoff=0.4)
        hint = f"; near: {', '.join(near)}" if near else ""
        parser.error(f"no difference is called {options.name!r}{hint}")
    if options.check or options.name:
        items = [DIFFERENCES[options.name]] if options.name else list(DIFFERENCES.values())
        problems = [problem for item in items for problem in item.problems()]
        if options.name:
            print(entry(items[0]))
            print(f"torch gave {run(items[0].in_torch)}\njax gave   {run(items[0].in_jax)}")
        elif not DOCUMENT.exists() or DOCUMENT.read_text() != document():
            problems.append(f"{DOCUMENT} is stale: run python -m parity.differences")
        print("\n".join(problems), file=sys.stderr, end="\n" if problems else "")
        return bool(problems)
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(document())
    print(f"{len(DIFFERENCES)} differences written to {DOCUMENT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
