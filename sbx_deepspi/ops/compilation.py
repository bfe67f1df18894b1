"""How programs are compiled, and that they are kept from run to run."""

import hashlib
import os
from pathlib import Path

import jax

QUICKLY = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
"""Compiler options of programs that run once or seldom: compiling them well takes twice as long, and saves less."""


def keep_compiled_programs() -> None:
    """
    Have JAX keep compiled programs in the user's cache folder from run to run, unless it was told where, or not to.

    A folder for each kind of processor, since programs for one may not run on another that shares the home.
    """
    settings = jax.config.values
    if settings["jax_compilation_cache_dir"] is not None or not settings["jax_enable_compilation_cache"]:
        return
    processors = Path("/proc/cpuinfo")
    lines = processors.read_text().splitlines() if processors.exists() else []
    flags = {line for line in lines if line.startswith(("flags", "Features"))}
    kind = hashlib.sha256("".join(sorted(flags)).encode()).hexdigest()[:8]
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "sbx-deepspi", f"compiled-{kind}"))
