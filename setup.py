"""The packages of an installation; everything else is in pyproject.toml, which cannot say that a folder goes by another name.

`gin_configs/` is installed as `chameleon_jax/gin_configs/`: at the top of site-packages it would be in the way of others.
"""

from setuptools import find_packages, setup

GIN_CONFIGS = {"": "gin_configs", ".models": "gin_configs/models", ".runs": "gin_configs/runs"}

setup(
    packages=[
        *find_packages(include=["chameleon_jax", "chameleon_jax.*", "experiments"]),
        *(f"chameleon_jax.gin_configs{part}" for part in GIN_CONFIGS),
    ],
    package_dir={f"chameleon_jax.gin_configs{part}": folder for part, folder in GIN_CONFIGS.items()},
)
