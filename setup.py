"""What setup.cfg cannot say: the YAML files of configs/ are installed as the folder icve/configs."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["icve", "icve.*"]), "icve.configs"],
    package_dir={"icve.configs": "configs"},
    package_data={"icve.configs": ["**/*.yaml"]},
)
