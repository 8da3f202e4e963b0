"""A parser's complaint about a configuration as one sentence, with the nearest valid name."""

import difflib
import inspect
import pydoc
import re
from collections.abc import Iterable, Sequence
from typing import Any

from jsonargparse import ArgumentParser

# The ways jsonargparse reports a name it does not know, of a class or of the command.
UNKNOWN_OPTION = re.compile(
    r"(?:Problem with given class_path '([^']+)':\s+)?"
    r"(?:Option '([^']+)' is not accepted|does not accept option '([^']+)'|[Uu]nrecognized arguments: --([^\s=]+))"
)
STRAY_ARGUMENT = re.compile(r"[Uu]nrecognized arguments: ([^-]\S*)")
# What it says of a class where a class, or a name or nothing, would do.
NOISE = re.compile(
    r"Does not validate against any of the Union subtypes\s+Subtypes:.*?Errors:"
    r"|^\s*- Expected a <class '(?:str|NoneType)'>$|^\s*Given value.*?$",
    re.DOTALL | re.MULTILINE,
)


def explain(message: str, parser: ArgumentParser) -> str:
    """One sentence for an error message of jsonargparse.

    Args:
        message: may span lines.
        parser: of the subcommand, for the names it knows.
    """
    if found := UNKNOWN_OPTION.search(message):
        class_path, *options = found.groups()
        option = next(filter(None, options))
        if class_path is not None:
            named: Any = pydoc.locate(class_path)
            return f"{class_path} has no option '{option}'{nearest(option, inspect.signature(named).parameters)}"
        keys = [key.split(".") for key in vars(parser.get_defaults().as_flat())]
        known = {".".join(parts[:length]) for parts in keys for length in range(1, len(parts) + 1)}
        return f"there is no option '{option}'{nearest(option, known)}"
    if found := STRAY_ARGUMENT.search(message):
        return f"'{found.group(1)}' belongs to no option; a configuration is given with -c"
    return in_one_line(message)


def in_one_line(message: str) -> str:
    """An error message of jsonargparse without what it says of unions."""
    message = re.sub(r"Expected a typing\.Literal\[([^\]]*)\]", r"Expected one of \1", NOISE.sub("", message))
    lines = (line.strip().removeprefix("- ") for line in message.replace("Parser key ", "option ").splitlines())
    return "; ".join(filter(None, lines)).replace(":;", ":")


def with_strategy_class(arguments: Sequence[str]) -> list[str]:
    """Arguments in which `--trainer.strategy CLASS` means a class, not a name of Lightning's; ours need no module."""

    def class_path(found: re.Match[str]) -> str:
        name = found[1] if "." in found[1] else f"icve.training.distributed.strategies.{found[1]}"
        return f"--trainer.strategy.class_path={name}"

    option = r"(?<![^\0])--trainer\.strategy[=\0]([\w.]*Strategy)(?![^\0])"  # a whole argument, or two
    return re.sub(option, class_path, "\0".join(arguments)).split("\0")


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean '...'?" with the closest of the known names, or nothing when none is close."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{matches[0]}'?" if matches else ""
