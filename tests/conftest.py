"""What all tests share: the platform, run-time shape checks, strict arithmetic."""

import os
from collections.abc import Iterator
from importlib.metadata import version

# Before jax is imported; subprocesses inherit it. Most of a test's time is compilation
# of a program that runs for milliseconds. `XLA_FLAGS= pytest` compiles as users do.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"
    # Halves the time; a later jaxlib has no such flag.
    + " --xla_cpu_use_fusion_emitters=false" * (version("jaxlib") < "0.11"),
)

import jax
import jaxtyping
import pytest

# Checks the shape and type annotations of the package at run time; before its import.
jaxtyping.install_import_hook("lstm_jax", "beartype.beartype")

collect_ignore = ["golden"]  # scripts that wrote the golden files; they need PyTorch


@pytest.fixture
def strict() -> Iterator[None]:
    """No implicit promotion of types or ranks."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def x64() -> Iterator[None]:
    """Arrays are float64 unless a type is given."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def unchecked_types() -> Iterator[None]:
    """Wrong arguments reach the package's own checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
