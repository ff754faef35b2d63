"""ClipClassifier: a timm backbone on a clip's frames, a temporal head, and one or several outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from revbifpn.models.arguments import check_count, check_rate
from revbifpn.models.clips.outputs import Output, make_output
from revbifpn.models.clips.shift import shift_couplings
from revbifpn.models.clips.temporal import MeanPooling, TemporalTransformer

Temporal = Literal["mean", "shift", "transformer"]
TEMPORAL: tuple[Temporal, ...] = ("mean", "shift", "transformer")


class ClipClassifier(nn.Module):
    """Classifies clips: (N, T, C, H, W) -> for each output its logits.

    The backbone sees the N * T frames as one batch, so each frame's pooled features depend on its clip in two ways at most:

    - by the temporal shift, if that is chosen;
    - by **batch norm in training mode**, whose statistics run over all N * T frames. They are then those of few clips, and of
      frames that resemble each other: with ``norm_eval`` the norms keep those of the weights that training begins with.

    Args:
        backbone: timm's name, such as ``"revbifpn_s0"``, or a module (N, C, H, W) -> (N, F) with timm's ``num_features``.
        outputs: for each output its number of levels, or a dict with ``levels`` and ``kind`` (:data:`.OUTPUTS`).
        temporal: ``"mean"``, which pools frames' features and is blind to their order; ``"shift"``, which shifts channels
            along time inside the reversible couplings (:mod:`.shift`; RevBiFPN only) and then pools; ``"transformer"``
            (:class:`.TemporalTransformer`).
        frames: T; None takes clips of any length, which ``"mean"`` alone can.
        temporal_args: of the temporal head: ``div`` of the shift, or ``width``, ``depth``, ``heads``, ``dropout``.
        drop_rate: dropout before the outputs.
        frame_chunk: run the backbone on so many frames at a time, and again in the backward pass, so that activation memory
            does not grow with T, but for pooled features and, of each chunk, two vectors a norm; None runs all at once.
            Outputs and gradients are those of all at once up to rounding (masks of dropout are drawn chunk by chunk). That
            is so where frames do not meet in the backbone: batch norm in training mode is refused, ``norm_eval`` has it in
            eval mode; and so is the shift.
        norm_eval: keep the backbone's batch norms in eval mode in training.
        model_args: further arguments of ``timm.create_model``.

    Raises:
        ValueError: for no outputs, an unknown head, or settings that do not go together.
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        outputs: Mapping[str, int | Mapping[str, Any]],
        temporal: Temporal = "mean",
        frames: int | None = None,
        temporal_args: Mapping[str, Any] | None = None,
        drop_rate: float = 0.0,
        frame_chunk: int | None = None,
        norm_eval: bool = False,
        model_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if temporal not in TEMPORAL:
            raise ValueError(f"temporal must be one of {', '.join(TEMPORAL)}, got {temporal!r}")
        if not outputs:
            raise ValueError("a ClipClassifier has one output at least, got none")
        if frames is None and temporal != "mean":
            raise ValueError(f"temporal={temporal!r} is made for a number of frames: give frames")
        if frame_chunk is not None and temporal == "shift":
            raise ValueError(
                "frame_chunk: temporal='shift' needs all frames of a clip at once; choose 'mean' or 'transformer'"
            )
        self.temporal = temporal
        self.frames = None if frames is None else check_count("frames", frames, 1)
        self.frame_chunk = None if frame_chunk is None else check_count("frame_chunk", frame_chunk, 1)
        self.norm_eval = norm_eval
        self.drop_rate = check_rate("drop_rate", drop_rate)
        if isinstance(backbone, str):
            # Dropout is this model's, behind the temporal head, not the backbone's on single frames.
            backbone = cast(nn.Module, timm.create_model(backbone, num_classes=0, **{"drop_rate": 0.0, **(model_args or {})}))
        elif model_args:
            raise ValueError("model_args are timm.create_model's: leave them out with a backbone that is a module")
        self.backbone = backbone
        features = int(getattr(backbone, "head_hidden_size", None) or cast(int, backbone.num_features))
        arguments = dict(temporal_args or {})
        self.head: MeanPooling | TemporalTransformer
        if temporal == "transformer":
            self.head = TemporalTransformer(features, cast(int, frames), **arguments)
        else:
            if temporal == "shift":
                shift_couplings(backbone, cast(int, frames), **arguments)
            elif arguments:
                raise ValueError(f"temporal='mean' takes no temporal_args, got {arguments}")
            self.head = MeanPooling(features)
        self.outputs = nn.ModuleDict()
        for name, output in outputs.items():
            if not name or "." in name or hasattr(self.outputs, name):
                raise ValueError(f"an output cannot be called {name!r}: torch.nn.ModuleDict has no such key")
            settings = {"levels": output} if isinstance(output, int) else dict(output)
            self.outputs[name] = make_output(self.head.out_features, **settings)
        self.train()
        if self.frame_chunk is not None:
            self._check_chunks()

    def output(self, name: str) -> Output:
        """The output of a name."""
        return cast(Output, self.outputs[name])

    def train(self, mode: bool = True) -> ClipClassifier:
        """Switch to training mode, except norms of the backbone that ``norm_eval`` holds in eval mode."""
        super().train(mode)
        if mode and self.norm_eval:
            for module in self.backbone.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward_frames(self, clips: Tensor) -> Tensor:
        """(N, T, C, H, W) -> pooled features of each frame, (N, T, F).

        Raises:
            ValueError: for clips of another shape or length, or if batch norm in training mode would see chunks.
        """
        if clips.ndim != 5 or clips.shape[1] == 0:
            raise ValueError(f"expected clips of shape (N, T, C, H, W) with one frame at least, got {tuple(clips.shape)}")
        if self.frames is not None and clips.shape[1] != self.frames:
            raise ValueError(f"this model was made for clips of {self.frames} frames (frames), got {clips.shape[1]}")
        images = clips.flatten(0, 1)
        chunk = self.frame_chunk
        if chunk is None or chunk >= len(images):
            features: Tensor = self.backbone(images)
        elif self.training and torch.is_grad_enabled():
            self._check_chunks()
            # A chunk's input is what is kept of it; its pass, reversible or not, begins and ends in the backward pass.
            features = torch.cat([checkpoint(self.backbone, part, use_reentrant=False) for part in images.split(chunk)])
        else:
            features = torch.cat([self.backbone(part) for part in images.split(chunk)])
        return features.unflatten(0, (-1, clips.shape[1]))

    def forward_features(self, clips: Tensor) -> Tensor:
        """(N, T, C, H, W) -> features of each clip, (N, F'), before dropout."""
        features: Tensor = self.head(self.forward_frames(clips))
        return features

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        """(N, T, C, H, W) -> for each output its logits, (N, K) or (N, K - 1)."""
        features = F.dropout(self.forward_features(clips), self.drop_rate, self.training)
        return {name: output(features) for name, output in self.outputs.items()}

    def losses(self, logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """For each output its mean loss, a scalar, over the clips that have its label.

        Args:
            logits: what :meth:`forward` returned.
            labels: for each output (N,) levels, -1 where missing, or (N, K) probabilities, NaN where missing.

        Raises:
            KeyError: if an output has no labels.
            ValueError: see :meth:`.Output.loss`.
        """
        return {name: self.output(name).loss(logits[name], labels[name]) for name in self.outputs}

    def predict(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """For each output the levels, (N,)."""
        return {name: self.output(name).predict(logits[name]) for name in self.outputs}

    def probabilities(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """For each output the levels' probabilities, (N, K)."""
        return {name: self.output(name).probabilities(logits[name]) for name in self.outputs}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switch the backbone's checkpointing, or RevBiFPN's reversible mode, as timm's models do."""
        cast(Any, self.backbone).set_grad_checkpointing(enable)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The backbone's parameter groups for layer-wise learning rates; the heads are the last one."""
        groups: dict[str, Any] = cast(Any, self.backbone).group_matcher(coarse=coarse)

        def inside(pattern: str) -> str:
            return rf"^backbone\.(?:{pattern.replace('^', '')})"

        return {
            name: inside(found) if isinstance(found, str) else [(inside(pattern), *rest) for pattern, *rest in found]
            for name, found in groups.items()
        }

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must spare: the backbone's, and the learned tokens and biases."""
        own = {"head.token", "head.positions"}
        if hasattr(self.backbone, "no_weight_decay"):
            own |= {f"backbone.{name}" for name in cast(Any, self.backbone).no_weight_decay()}
        return own

    def _check_chunks(self) -> None:
        norms = [name for name, module in self.backbone.named_modules() if isinstance(module, _BatchNorm) and module.training]
        if norms:
            raise ValueError(
                f"frame_chunk: batch norm in training mode ({norms[0]} and {len(norms) - 1} more) takes its statistics over "
                "all frames, so chunks would train another model: set norm_eval=True, or leave frame_chunk out"
            )
