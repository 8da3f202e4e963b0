"""What setup.cfg cannot say: configs/ and pipelines/ are installed inside the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["icve", "icve.*"]), "icve.configs", "icve.pipelines"],
    package_dir={"icve.configs": "configs", "icve.pipelines": "pipelines"},
    package_data={
        "icve": ["editor/**/*"],
        "icve.configs": ["**/*.yaml"],
        "icve.pipelines": ["*.yaml"],
        "icve.curation.edit_pairs": ["*.yaml"],
        "icve.synthetic": ["*.yaml"],
        "icve.evaluation": ["*.css", "*.js", "*.jinja"],
    },
)
