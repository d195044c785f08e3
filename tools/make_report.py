"""The report as scripts call it, ``python -m tools.make_report --reference R --tuned T``: see ``opdgeom report``."""

import argparse
import sys

from opdgeom_utils.cli import main as command


def main(arguments: list[str] | None = None) -> int:
    """Pass both names, and options that take several words, on to ``opdgeom report``."""
    parser = argparse.ArgumentParser(description=__doc__, add_help=False)
    parser.add_argument("--reference", default="")
    parser.add_argument("--tuned", nargs="+", default=[])
    parser.add_argument("--modules", nargs="+", default=[])
    given, others = parser.parse_known_args(arguments)
    kinds = [f"--modules={','.join(given.modules)}"] if given.modules else []
    return command(["report", *others, *kinds, "--", given.reference, *given.tuned])


if __name__ == "__main__":
    sys.exit(main())
