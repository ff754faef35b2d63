"""Models by name and by function, and the mode that a name may end in; what is wrong with a name is said."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from revbifpn.memory.configs import ConfigSubject
from revbifpn.memory.modes import KNOWN
from revbifpn.memory.sources import CallableSubject, TimmSubject, find_subject, split_mode, subject_and_mode
from revbifpn.memory.subject import SubjectError

TINY = "tests.memory.conftest:make_tiny"


def make_nothing() -> int:
    return 3


def make_with_argument(width: int) -> nn.Module:
    return nn.Conv2d(3, width, 3)


def stored() -> nn.Module:
    """Named like a mode."""
    return nn.Conv2d(3, 4, 3)


class TestNotation:
    @pytest.mark.parametrize(
        ("spec", "name", "mode"),
        [
            ("revbifpn_s0", "revbifpn_s0", None),
            ("revbifpn_s0:stored", "revbifpn_s0", "stored"),
            ("resnet50.a1_in1k:checkpointing", "resnet50.a1_in1k", "checkpointing"),
            ("module:callable", "module:callable", None),
            ("package.module:callable", "package.module:callable", None),
            ("module:callable:exact", "module:callable", "exact"),
            ("module:stored:stored", "module:stored", "stored"),
            ("configs/x.py", "configs/x.py", None),
            ("configs/x.py:reversible", "configs/x.py", "reversible"),
            ("mmdet::hrnet/x.py", "mmdet::hrnet/x.py", None),
            ("mmdet::hrnet/x.py:stored", "mmdet::hrnet/x.py", "stored"),
        ],
    )
    def test_the_last_colon_may_begin_a_mode(self, spec: str, name: str, mode: str | None) -> None:
        assert split_mode(spec) == (name, mode)

    @pytest.mark.parametrize(
        ("spec", "mode"),
        [
            ("revbifpn_s0:fast", "fast"),
            ("revbifpn_s0:", ""),
            ("revbifpn_s0:Stored", "Stored"),
            ("configs/x.py:fast", "fast"),
            ("mmdet::hrnet/x.py:fast", "fast"),
            ("module:callable:fast", "fast"),
        ],
    )
    def test_what_is_no_mode_is_named_with_the_choices(self, spec: str, mode: str) -> None:
        with pytest.raises(SubjectError) as error:
            split_mode(spec)
        assert str(error.value) == f"{spec}: unknown mode {mode!r}: choose from {', '.join(KNOWN)}"

    def test_subjects_come_without_the_mode_in_their_name(self) -> None:
        subject, mode = subject_and_mode("resnet18:checkpointing")
        assert (subject.name, mode) == ("resnet18", "checkpointing")
        assert subject.model("checkpointing", (64, 64)).grad_checkpointing is True
        subject, mode = subject_and_mode(TINY)
        assert (subject.name, mode) == (TINY, None)

    def test_a_function_that_is_named_like_a_mode(self) -> None:
        subject, mode = subject_and_mode("tests.memory.test_sources:stored:stored")
        assert isinstance(subject, CallableSubject)
        assert (subject.modes, mode) == (("stored",), "stored")
        with pytest.raises(SubjectError, match=r"unknown model 'tests\.memory\.test_sources'"):
            subject_and_mode("tests.memory.test_sources:stored")

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("resnet18:exact", "resnet18 has no mode 'exact': choose from stored, checkpointing"),
            (f"{TINY}:checkpointing", f"{TINY} has no mode 'checkpointing': choose from reversible, exact, stored"),
            ("revbifpn_s9:stored", r"unknown model 'revbifpn_s9': did you mean revbifpn_s\d"),
        ],
    )
    def test_a_mode_that_the_model_does_not_have(self, spec: str, message: str) -> None:
        with pytest.raises(SubjectError, match=message):
            subject_and_mode(spec)


def test_timm_names() -> None:
    subject = find_subject("revbifpn_s3")
    assert isinstance(subject, TimmSubject)
    assert subject.image == (288, 288)
    assert (subject.top1, subject.box_ap) == (81.1, None)
    assert subject.family == "revbifpn"
    b7 = find_subject("tf_efficientnet_b7")
    assert (b7.image, b7.family, b7.top1) == ((600, 600), "efficientnet", 84.3)
    assert find_subject("mobilenetv3_small_050").top1 is None


def test_models_of_one_image_size_are_built_for_it() -> None:
    subject = find_subject("vit_tiny_patch16_224")
    assert subject.fixed_size
    model = subject.model("stored", (96, 96))
    assert model(torch.zeros(1, 3, 96, 96)).shape == (1, 1000)
    assert subject.model("stored", (96, 96)) is model
    assert subject.model("stored", (224, 224)) is not model


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("revbifpn_s9", r"unknown model 'revbifpn_s9': did you mean revbifpn_s\d"),
        ("no_such_thing_at_all_xyz", r"unknown model 'no_such_thing_at_all_xyz'\. Give a timm model name"),
        ("no_such_module:make", "module 'no_such_module' cannot be imported: ModuleNotFoundError"),
        ("tests.memory.conftest:no_such", r"module 'tests.memory.conftest' \(.*conftest\.py\) has no 'no_such'"),
        ("missing.py", "config not found: missing.py"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(SubjectError, match=message):
        find_subject(name)


class TestFunctions:
    def test_modes_and_size(self) -> None:
        subject = find_subject(TINY)
        assert isinstance(subject, CallableSubject)
        assert subject.modes == ("reversible", "exact", "stored")
        assert subject.image == (224, 224)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("make_nothing", "returned int, not a torch.nn.Module"),
            ("make_with_argument", r"make_with_argument\(width.*failed without"),
        ],
    )
    def test_functions_that_make_no_model(self, name: str, message: str) -> None:
        with pytest.raises(SubjectError, match=message):
            find_subject(f"tests.memory.test_sources:{name}").build((32, 32))

    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A working directory, with the path of imports as it is when a command begins."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", os.getcwd())])
        return tmp_path

    def test_modules_in_the_working_directory(self, folder: Path) -> None:
        (folder / "my_own_networks.py").write_text("from torch import nn\ndef make(): return nn.Conv2d(3, 4, 3)\n")
        before = list(sys.path)
        assert find_subject("my_own_networks:make").build((32, 32)).weight.shape == (4, 3, 3, 3)
        assert sys.path == [*before, str(folder)]
        find_subject("my_own_networks:make")
        assert sys.path == [*before, str(folder)], "once is enough"

    def test_other_names_leave_the_path_alone(self, folder: Path) -> None:
        before = list(sys.path)
        assert isinstance(find_subject("resnet18"), TimmSubject)
        (folder / "my_config.py").write_text("model = dict(type='X')\n")
        assert isinstance(find_subject("my_config.py"), ConfigSubject)
        assert sys.path == before

    def test_a_file_does_not_take_the_place_of_a_library(self, folder: Path) -> None:
        (folder / "colorsys.py").write_text("def make(): return None\n")
        sys.modules.pop("colorsys", None)
        with pytest.raises(SubjectError, match=r"module 'colorsys' \(.*\) has no 'make'") as error:
            find_subject("colorsys:make")
        assert str(folder) not in str(error.value)

    def test_a_module_that_fails(self, folder: Path) -> None:
        (folder / "my_broken_networks.py").write_text("def make(:\n")
        with pytest.raises(SubjectError, match="module 'my_broken_networks' cannot be imported: SyntaxError"):
            find_subject("my_broken_networks:make")
