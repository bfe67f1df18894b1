"""Compiled programs that are kept from run to run."""

from pathlib import Path

import jax
import pytest

from sbx_deepspi.ops import keep_compiled_programs


def test_compiled_programs_are_kept_unless_jax_was_told_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = jax.config.jax_compilation_cache_dir
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == told
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        keep_compiled_programs()
        assert Path(jax.config.jax_compilation_cache_dir).parent == tmp_path / "sbx-deepspi"
    finally:
        jax.config.update("jax_compilation_cache_dir", told)
