"""What an installation brings, on every platform, read from the files that decide it."""

import ast
import configparser
import importlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PLATFORMS = {
    "linux-x86_64": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    "linux-aarch64": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "aarch64"},
    "macos-arm64": {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
    "macos-x86_64": {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "x86_64"},
    "windows-amd64": {"sys_platform": "win32", "platform_system": "Windows", "platform_machine": "AMD64"},
    "windows-arm64": {"sys_platform": "win32", "platform_system": "Windows", "platform_machine": "ARM64"},
}
# What is left out where: DeepSpeed builds on Linux only.
LEFT_OUT = {
    "linux-x86_64": set(),
    "linux-aarch64": set(),
    "macos-arm64": {"deepspeed"},
    "macos-x86_64": {"deepspeed"},
    "windows-amd64": {"deepspeed"},
    "windows-arm64": {"deepspeed"},
}


def metadata() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.optionxform = str  # script names keep their case
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def requirements(section: str = "options", key: str = "install_requires") -> list[Requirement]:
    return [Requirement(line) for line in metadata()[section][key].splitlines() if line.strip()]


def constraints() -> dict[str, Version]:
    pins: dict[str, Version] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!]+)", line)
            assert match, f"constraints.txt pins exact public versions, one a line, not {line!r}"
            name = canonicalize_name(match[1])
            assert name not in pins, f"{name} is pinned twice"
            pins[name] = Version(match[2])
    return pins


def console_scripts() -> dict[str, str]:
    lines = metadata()["options.entry_points"]["console_scripts"].splitlines()
    return dict(re.split(r"\s*=\s*", line.strip()) for line in lines if line.strip())


@pytest.mark.parametrize("platform", PLATFORMS)
def test_markers_per_platform(platform):
    environment = {**PLATFORMS[platform], "python_version": "3.11", "python_full_version": "3.11.7", "extra": ""}
    everything = {requirement.name for requirement in requirements()}
    wanted = {r.name for r in requirements() if r.marker is None or r.marker.evaluate(environment)}
    assert everything - wanted == LEFT_OUT[platform]


def test_every_requirement_is_pinned_within_its_range():
    pins = constraints()
    extras = metadata()["options.extras_require"]
    wanted = requirements() + [r for extra in extras for r in requirements("options.extras_require", extra)]
    for requirement in wanted:
        if requirement.name == "icve":
            assert requirement.extras <= set(extras), f"{requirement} names an extra that does not exist"
            continue
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{requirement.name} is not pinned in constraints.txt"
        assert pins[name] in requirement.specifier, f"{name}=={pins[name]} is outside {requirement.specifier}"
    assert pins["torch"] == Version("2.13.0")


EXTRAS = ("endpoint", "fp8", "lora", "ray", "s3")  # for users; test and dev are for those who work on the package


def test_everything_these_bring_is_pinned():
    pins, seen = constraints(), set()
    queue = [*requirements(), *requirements("options.extras_require", "test")]
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        # one visit per set of extras: jsonargparse[signatures] brings more than jsonargparse
        key = (name, tuple(sorted(requirement.extras)))
        if key in seen or name.startswith(("nvidia-", "cuda-", "triton")):  # a CUDA build of torch brings its own
            continue
        seen.add(key)
        try:
            brought = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # left out on this platform
            continue
        assert name in pins or name == "icve", f"{name} gets installed but is not pinned in constraints.txt"
        for line in brought:
            child = Requirement(line)
            if child.marker is None or any(child.marker.evaluate({"extra": e}) for e in (requirement.extras or {""})):
                queue.append(child)


def test_declared_minimum_versions():
    assert metadata()["options"]["python_requires"] == ">=3.11"
    torch = next(requirement for requirement in requirements() if requirement.name == "torch")
    assert torch.specifier == SpecifierSet(">=2.11")


def test_every_import_is_declared():
    """A package imported here but brought only by another one would vanish when that one drops it."""
    extras = [requirement for key in EXTRAS for requirement in requirements("options.extras_require", key)]
    declared = {canonicalize_name(requirement.name) for requirement in [*requirements(), *extras]}
    providers = importlib.metadata.packages_distributions()
    for source in sorted([*ROOT.glob("icve/**/*.py"), *ROOT.glob("tools/*.py")]):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            else:
                continue
            own = {"icve", "_typeshed"}  # the latter only type checkers know
            if source.parent.name == "tools":  # run as scripts: they find each other, and what is measured against
                own |= {"tools", "decord", *(path.stem for path in source.parent.glob("*.py"))}
            for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names - own:
                owners = {canonicalize_name(owner) for owner in providers.get(top, [top])}
                assert owners & declared, f"{source.relative_to(ROOT)} imports {top}, which setup.cfg does not require"


def test_console_scripts_are_the_built_commands_and_import():
    scripts = console_scripts()
    assert scripts == {
        "lightning": "icve.cli.main:main",
        "icve": "icve.cli.main:main",
        "icve-curate": "icve.cli.curate:main",
        "icve-edit": "icve.cli.edit:main",
        "icve-encode": "icve.cli.encode:main",
        "icve-eval": "icve.cli.evaluate:main",
    }
    for target in scripts.values():
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("script", ["lightning", "icve", "icve-edit", "icve-encode", "icve-eval"])
def test_installed_scripts_answer_help(script):
    path = shutil.which(script, path=sysconfig.get_path("scripts"))
    if path is None:
        pytest.skip("the package is not installed in this environment: run make setup")
    result = subprocess.run([path, "--help"], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    # `lightning` may have been overwritten by lightning-sdk, whose help knows nothing of fitting.
    marks = {"icve-edit": "--instruction", "icve-encode": "--shard", "icve-eval": "--truth"}
    assert marks.get(script, "fit") in result.stdout


def test_one_version_everywhere():
    import icve

    assert metadata()["metadata"]["version"] == "attr: icve.__version__"
    assert str(Version(icve.__version__)) == icve.__version__
    assert importlib.metadata.version("icve") == icve.__version__, "reinstall: the installed metadata is older"
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+?)\]", changes, flags=re.M)
    assert headings[0] == "Unreleased"
    assert headings[1:] == sorted(headings[1:], key=Version, reverse=True)
    assert not headings[1:] or Version(headings[1]) <= Version(icve.__version__)


def test_licence():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert metadata()["metadata"]["license"] == "Apache-2.0"


@pytest.mark.slow
def test_wheel_holds_the_package_and_its_configurations(tmp_path):
    copy = tmp_path / "source"
    copy.mkdir()
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for folder in ("icve", "configs", "pipelines"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", tmp_path, copy], check=True, timeout=180)
    (wheel,) = tmp_path.glob("icve-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    sources = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("icve/**/*") if p.is_file() and p.suffix != ".pyc"}
    yamls = [*ROOT.glob("configs/**/*.yaml"), *ROOT.glob("pipelines/*.yaml")]
    configurations = {f"icve/{path.relative_to(ROOT).as_posix()}" for path in yamls}
    assert configurations
    assert {name for name in held if ".dist-info/" not in name} == sources | configurations
