"""A parser's complaint about a configuration as one sentence, with the nearest valid name."""

import difflib
import inspect
import pydoc
import re
from collections.abc import Iterable, Sequence
from typing import Any

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
        named: Any = pydoc.locate(class_path)
        return f"{key}.init_args has no option '{option}'{nearest(option, inspect.signature(named).parameters)}"
    if found := UNKNOWN_OPTION.search(message):
        option = next(filter(None, found.groups()))
        keys = [key.split(".") for key in vars(parser.get_defaults().as_flat())]
        known = {".".join(parts[:length]) for parts in keys for length in range(1, len(parts) + 1)}
        return f"there is no option '{option}'{nearest(option, known)}"
    if found := STRAY_ARGUMENT.search(message):
        return f"'{found.group(1)}' belongs to no option; a configuration is given with -c"
    message = about_the_class(message)
    message = re.sub(r"Expected a typing\.Literal\[([^\]]*)\]", r"Expected one of \1", message)
    lines = [re.sub(r"^- ", "", line.strip()) for line in message.replace("Parser key ", "option ").splitlines()]
    return re.sub(r":;", ":", "; ".join(lines))


def about_the_class(message: str) -> str:
    """A complaint of jsonargparse about a class, where a class, or a name or nothing, would do: without the rest."""
    union = re.search(r"Does not validate against any of the Union subtypes\s*Subtypes:.*?Errors:\s*", message, re.S)
    if union is None:
        return message
    complaints = message[union.end() :].partition("Given value type")[0]
    told = [text.strip() for text in re.split(r"(?:^|\n)\s*- ", complaints)]
    told = [text for text in told if text and not re.fullmatch(r"Expected a <class '(str|NoneType)'>", text)]
    return message[: union.start()] + "; ".join(told) if told else message


def with_strategy_class(arguments: Sequence[str]) -> list[str]:
    """Arguments in which `--trainer.strategy CLASS` means a class, not a name of Lightning's; ours need no module."""
    words: list[str] = []
    for word in arguments:
        option, equals, value = word.partition("=")
        if words and words[-1] == "--trainer.strategy":
            option, equals, value = words.pop(), "=", word
        if option == "--trainer.strategy" and equals and re.fullmatch(r"[\w.]*Strategy", value):
            word = f"{option}.class_path={value if '.' in value else f'icve.training.distributed.strategies.{value}'}"
        elif option == "--trainer.strategy" and equals:
            word = f"{option}={value}"
        words.append(word)
    return words


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean '...'?" with the closest of the known names, or nothing when none is close."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{matches[0]}'?" if matches else ""
