"""The table that is printed where there is no GPU."""

from __future__ import annotations

from types import SimpleNamespace

from forkjoin_bench.grouped import command


def test_without_a_gpu_what_is_read_is_printed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "_measure", lambda: None)
    args = SimpleNamespace(families=[1], widths=[8], prefixes=[4096], out=tmp_path, command="grouped")
    command.main(args)
    assert "| 1 | 8 | 4,096 | 36,768 | 8,096 | 4.54 | 1.90 | 0.95 | 1.11 |" in capsys.readouterr().out
    assert (tmp_path / "grouped.json").exists()
