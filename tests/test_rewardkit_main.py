"""How the console script ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rewardkit import __main__ as script


@pytest.mark.parametrize("code", [0, 1])
def test_the_group_of_processes_is_left_where_all_went_well(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    monkeypatch.setattr(script, "main", lambda: code)
    try:
        with pytest.raises(SystemExit) as ended:
            script.run()
        assert ended.value.code == code
        assert torch.distributed.is_initialized() is (code != 0)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def test_a_command_without_other_processes_just_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "main", lambda: 0)
    with pytest.raises(SystemExit) as ended:
        script.run()
    assert ended.value.code == 0
