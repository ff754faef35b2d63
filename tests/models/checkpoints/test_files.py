"""Files of weights: only what is whole is read, and nothing in it is run."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file

from revbifpn import CheckpointError
from revbifpn.models import read_checkpoint
from revbifpn.models.checkpoints import check_integrity

WEIGHTS = {"a.weight": torch.arange(64.0), "b.bias": torch.ones(3)}


class Stranger:
    """An object that no training script is known to save."""


def test_a_flipped_bit_is_found_which_torch_would_load(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(WEIGHTS, path)
    content = bytearray(path.read_bytes())
    content[content.index(np.arange(64, dtype=np.float32).tobytes()) + 7] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path)["a.weight"], WEIGHTS["a.weight"])
    with pytest.raises(CheckpointError, match=r"weights.pth is damaged: record '.*' does not match its checksum"):
        read_checkpoint(path)


@pytest.mark.parametrize("cut", [5, 100, 300])
def test_truncated_safetensors_are_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(WEIGHTS, path)
    check_integrity(path)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(CheckpointError, match="weights.safetensors is no safetensors file, or a damaged or truncated one"):
        check_integrity(path)


def test_what_is_no_checkpoint_is_told_by_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_text("<!DOCTYPE html><html>not found</html>")
    with pytest.raises(CheckpointError, match="weights.pth is no checkpoint: it begins with b'<!DOCTYPE html>"):
        check_integrity(path)


@pytest.mark.parametrize("archive", [True, False])
def test_what_training_scripts_save_beside_the_weights_is_skipped(tmp_path: Path, archive: bool) -> None:
    beside = {
        "args": argparse.Namespace(lr=0.1, opt="sgd"),  # timm
        "message_hub": {"log_scalars": {"loss": HistoryBuffer([1.0], [1])}, "best": np.float64(0.5)},  # MMEngine
    }
    path = tmp_path / "epoch_1.pth"
    torch.save({"state_dict": WEIGHTS, **beside}, path, _use_new_zipfile_serialization=archive)
    allowed = torch.serialization.get_safe_globals()
    found = read_checkpoint(path)
    assert all(torch.equal(value, found[key]) for key, value in WEIGHTS.items())
    assert set(torch.serialization.get_safe_globals()) == set(allowed)


def test_other_objects_are_refused_by_name_without_advice_to_trust_them(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": WEIGHTS, "extra": Stranger()}, path)
    with pytest.raises(CheckpointError, match="safely: it holds more than weights, an object of '.*Stranger'") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert "trust" not in str(caught.value)
