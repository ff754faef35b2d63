"""Which types a safe reading of MMEngine's checkpoints builds, and which it refuses."""

from __future__ import annotations

import io
from pickle import UnpicklingError
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from revbifpn.integrations.mmengine import checkpoint_types


def saved(content: Any) -> bytes:
    torch.save(content, file := io.BytesIO(), _use_new_zipfile_serialization=False)  # plain bytes, to be altered
    return file.getvalue()


def read(content: bytes) -> Any:
    with torch.serialization.safe_globals(checkpoint_types()):
        return torch.load(io.BytesIO(content), weights_only=True)


@pytest.mark.parametrize("core", [b"numpy._core.", b"numpy.core."])
def test_message_hubs_are_read_whichever_numpy_wrote_them(core: bytes) -> None:
    history = HistoryBuffer([1.0, 2.5], [3, 4])
    scalars = [np.float32(0.5), np.float64(0.25), np.int64(7), np.bool_(True)]
    content = saved({"log_scalars": {"train/loss": history}, "runtime_info": {"scores": scalars}})
    own = np.zeros(0).__reduce__()[0].__module__.encode() + b"\n"
    assert own in content
    found = read(content.replace(own, core + b"multiarray\n"))
    for array, wanted in zip(found["log_scalars"]["train/loss"].data, history.data, strict=True):
        assert array.dtype == wanted.dtype
        assert np.array_equal(array, wanted)
    assert found["log_scalars"]["train/loss"].statistics("mean") == 0.5
    assert found["runtime_info"]["scores"] == scalars


class Reaching:
    """Reads an attribute while it is unpickled."""

    def __init__(self, owner: object, name: str) -> None:
        self.arguments = owner, name

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return getattr, self.arguments


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Reaching(HistoryBuffer, "register_statistics"), "the attribute 'register_statistics' of <class .*HistoryBuffer'>"),
        (Reaching(np.ndarray, "max"), "the attribute 'max' of <class 'numpy.ndarray'>"),
        (np.array([None, {}]), "ObjectDType"),
    ],
)
def test_other_attributes_and_arrays_of_objects_are_refused(content: object, message: str) -> None:
    with pytest.raises(UnpicklingError, match=message):
        read(saved({"message_hub": content}))
