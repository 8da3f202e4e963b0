"""What setup.cfg cannot say: configs/ is installed as icve/configs."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["icve", "icve.*"]), "icve.configs"],
    package_dir={"icve.configs": "configs"},
    package_data={
        "icve": ["editor/**/*"],
        "icve.configs": ["**/*.yaml"],
        "icve.evaluation": ["*.css", "*.js"],
    },
)
