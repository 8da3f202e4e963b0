import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from icve.cli import main as cli


@pytest.mark.parametrize("arguments", [["--help"], ["-h"]])
def test_help_lists_every_command_with_a_line(arguments, capsys):
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    for name, line in cli.COMMANDS.items():
        assert f"  {name:<14}{line}" in shown


def test_no_command_is_wrong_usage(capsys):
    assert cli.main([]) == 2
    assert "usage: icve COMMAND" in capsys.readouterr().out


def test_an_unknown_command_gets_the_nearest(capsys):
    assert cli.main(["fitt"]) == 2
    assert (
        capsys.readouterr().err
        == "icve: error: there is no command 'fitt': did you mean 'fit'? icve --help lists them.\n"
    )
    assert cli.main(["xyz"]) == 2


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_training_command_needs_a_configuration(command, capsys):
    assert cli.main([command]) == 2
    assert f"icve {command} -c CONFIG.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "module"), list(cli.MODULES.items()))
def test_other_commands_get_their_arguments_and_give_their_status(command, module, monkeypatch):
    seen = []

    class Module:
        @staticmethod
        def main(argv):
            seen.append(argv)
            return 3

    monkeypatch.setitem(sys.modules, module, Module)
    assert cli.main([command, "--count", "2"]) == 3
    # Lightning's command line wants to see which of the two it is.
    assert seen == [[command, "--count", "2"] if module == "icve.cli.fit" else ["--count", "2"]]


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.lower().lstrip().startswith("usage: icve")


def test_both_names_are_this_command():
    scripts = {script.name: script.value for script in entry_points(group="console_scripts")}
    assert scripts["icve"] == scripts["lightning"] == "icve.cli.main:main"


@pytest.mark.multiprocess
@pytest.mark.timeout(60)
def test_the_module_runs_and_help_is_light():
    code = "import sys, runpy; sys.argv = ['icve', '--help']\ntry: runpy.run_module('icve', run_name='__main__')\n"
    code += "except SystemExit as stop: assert stop.code == 0\nassert 'torch' not in sys.modules, 'slow'"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert result.returncode == 0, result.stderr
    assert "icve fit -c configs/demo/pretrain.yaml" in result.stdout


def test_version(capsys):
    from icve import __version__

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"icve {__version__}\n"
