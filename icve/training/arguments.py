"""A parser's complaint about a configuration as one sentence, with the nearest valid name."""

import difflib
import inspect
import pydoc
import re
from collections.abc import Iterable

from jsonargparse import ArgumentParser

# The ways jsonargparse reports a name it does not know.
UNKNOWN_OPTION = re.compile(r"does not accept option '([^']+)'|[Uu]nrecognized arguments: --([^\s=]+)")
STRAY_ARGUMENT = re.compile(r"[Uu]nrecognized arguments: ([^-]\S*)")
UNKNOWN_CLASS_OPTION = re.compile(
    r"Parser key \"([^\"]+)\":.*?class_path '([^']+)'.*?(?:Option '([^']+)' is not accepted|"
    r"does not accept option '([^']+)')",
    re.DOTALL,
)


def explain(message: str, parser: ArgumentParser) -> str:
    """One sentence for an error message of jsonargparse.

    Args:
        message: may span lines.
        parser: of the subcommand, for the names it knows.
    """
    if found := UNKNOWN_CLASS_OPTION.search(message):
        key, class_path, *options = found.groups()
        option = next(filter(None, options))
        known = inspect.signature(pydoc.locate(class_path)).parameters
        return f"{key}.init_args has no option '{option}'{nearest(option, known)}"
    if found := UNKNOWN_OPTION.search(message):
        option = next(filter(None, found.groups()))
        keys = [key.split(".") for key in vars(parser.get_defaults().as_flat())]
        known = {".".join(parts[:length]) for parts in keys for length in range(1, len(parts) + 1)}
        return f"there is no option '{option}'{nearest(option, known)}"
    if found := STRAY_ARGUMENT.search(message):
        return f"'{found.group(1)}' belongs to no option; a configuration is given with -c"
    # Lightning declares the data module as optional: only the complaint about the class is of use.
    if union := re.search(r"Subtypes: .*?Errors:\s*- (.*?)\s*- Expected a <class 'NoneType'>", message, re.DOTALL):
        message = message[: message.index("\n")] + " " + union.group(1)
    message = re.sub(r"Expected a typing\.Literal\[([^\]]*)\]", r"Expected one of \1", message)
    lines = [re.sub(r"^- ", "", line.strip()) for line in message.replace("Parser key ", "option ").splitlines()]
    return re.sub(r":;", ":", "; ".join(lines))


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean '...'?" with the closest of the known names, or nothing when none is close."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{matches[0]}'?" if matches else ""
