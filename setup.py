"""Packaging of l2l_tf: all metadata and dependencies."""

import pathlib

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
version = {}
exec((HERE / "l2l_tf" / "version.py").read_text(), version)

setup(
    name="l2l_tf",
    version=version["__version__"],
    description="Learned optimizers for Keras: meta-train an update rule, then train with it",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["l2l_tf", "l2l_tf.*"]),
    package_data={
        "l2l_tf": [
            "evaluation/suite/baselines/*.json",
            "pretrained/*/*",
            "pretrained/*/variables/*",
            "problems/images/*",
            "update_rules/native/*.cc",
            "update_rules/native/*.h",
        ],
    },
    scripts=["bin/meta_train", "bin/evaluate", "bin/pretrained"],
    install_requires=[
        "absl-py>=2.1",
        "keras>=3.10",
        "matplotlib>=3.8",
        "numpy>=1.26",
        "scikit-learn>=1.4",
        "tensorboard>=2.20",  # the tensorflow wheel no longer brings it along
        "tensorflow>=2.20",  # before, protobuf < 6, with which today's tensorflow-datasets fail
        "tensorflow-datasets>=4.9.7",
        "tqdm>=4.64",
        "importlib_resources",  # imported by tensorflow-datasets, which does not declare it
    ],
    extras_require={
        "gpu": ["tensorflow[and-cuda]>=2.20"],
        "test": ["pytest>=8", "pytest-xdist>=3.6.1"],
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
