"""One compilation cache for the whole suite and the processes that it starts; no more compiled code than needed."""

import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# the tests compile much and run little: these take less than half as long to compile, and fewer memory maps
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)
os.environ.setdefault("MPLBACKEND", "Agg")
# else SB3 leaves an empty folder for each model
os.environ.setdefault("SB3_LOGDIR", str(Path(tempfile.gettempdir()) / "sbx-deepspi-tests-logs"))


# whoever runs the tests in the background may have them ignore Ctrl-C, which programs that they start would inherit
signal.signal(signal.SIGINT, signal.default_int_handler)

MANY_MEMORY_MAPS = 40_000  # Linux allows a process 65,530
MUCH_MEMORY = 1.6e9  # bytes; one test may add almost a gigabyte


@pytest.fixture(autouse=True)
def forget_compiled_code() -> Iterator[None]:
    """Programs of tests that are over take memory, and XLA crashes in a process that holds too many of them."""
    yield
    maps, statm = Path("/proc/self/maps"), Path("/proc/self/statm")
    if not maps.exists():
        return
    resident = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if maps.read_bytes().count(b"\n") > MANY_MEMORY_MAPS or resident > MUCH_MEMORY:
        import jax

        from sbx_deepspi import memory

        jax.clear_caches()
        gc.collect()
        memory.give_back()  # else every further test would clear the caches
