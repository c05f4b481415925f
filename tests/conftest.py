"""What all tests share: the platform, run-time shape checks, strict arithmetic."""

import gc
import os
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Before jax is imported; subprocesses inherit it. Most of a test's time is compilation
# of a program that runs for milliseconds. `XLA_FLAGS= pytest` compiles as users do.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# No program from the cache of whoever runs the tests.
os.environ["JAX_COMPILATION_CACHE_DIR"] = ""
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"
    # Halves the time; a later jaxlib has no such flag.
    + " --xla_cpu_use_fusion_emitters=false" * (version("jaxlib") < "0.11"),
)

import jax
import jaxtyping
import pytest
from command_runs import Finished, Trained, caller, train_tiny
from jax.experimental.compilation_cache import compilation_cache

# Only tests that set a mesh use more than the first.
jax.config.update("jax_num_cpu_devices", 4)

# Checks the shape and type annotations of the package at run time; before its import.
jaxtyping.install_import_hook("lstm_jax", "checking.checked")

collect_ignore = ["golden"]  # scripts that wrote the golden files; they need PyTorch


def pytest_collection_finish() -> None:
    """What the imports made stays: looked through over and over it costs seconds."""
    gc.freeze()


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


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder from which programs that these tests compiled before are read."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # Jax looks at the options once.
    compilation_cache.reset_cache()
    return folder


@pytest.fixture(scope="module")
def fast_runs(compiled: Path) -> Iterator[Path]:
    """No curves are drawn, and programs are read from a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lstm_jax.reporting.draw_curves", lambda rows, title: b"")
        yield compiled


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run that tests read and do not change."""
    return train_tiny(tmp_path_factory.getbasetemp())


@pytest.fixture
def call(monkeypatch: Any, capsys: Any) -> Callable[..., Finished]:
    """Runs a script in this process."""
    return caller(monkeypatch, capsys)
