# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Exported models that are called like the models they come from."""

import json
import os
from pathlib import Path

import torch
from torch import nn

from ..configuration_oneref import OneRefConfig
from ..modeling_oneref import OneRefGroundingOutput, OneRefSegmentationOutput
from . import aotinductor, onnx, torch_export
from .program import OUTPUTS, ExportError


FORMATS = {"onnx": onnx, "torch_export": torch_export, "aotinductor": aotinductor}
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision")
# What loaders of Transformers hand on and an exported model has no use for.
_IGNORED_ARGUMENTS = ("_from_pipeline", "code_revision", "output_loading_info", "subfolder")


class OneRefExportedModel(nn.Module):
    r"""
    What `oneref export` wrote, behind the same processor and pipeline as the model it was made of.

    ```python
    >>> from oneref_hf.export import OneRefExportedModel
    >>> from oneref_hf import OneRefProcessor

    >>> model, processor = OneRefExportedModel.from_pretrained("DIR"), OneRefProcessor.from_pretrained("DIR")
    >>> outputs = model(**processor(image, ["the cup", "the spoon left of the cup"]))
    ```

    It runs on the CPU, in inference only, at the image size of the export; the weights' number format is fixed too,
    while what goes in and comes out is float32. `config.export` tells how it was made.
    """

    main_input_name = "pixel_values"
    input_modalities = ("image", "text")

    def __init__(self, config: OneRefConfig, runner):
        super().__init__()
        self.config = config
        self._runner = runner
        self.eval()
        # Pipeline and evaluation ask a model for its heads by name to know what it answers.
        self.box_head = nn.Identity()
        if "pred_masks" in OUTPUTS[config.export["task"]]:
            self.mask_head = nn.Identity()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        dtype: str | torch.dtype | None = "auto",
        trust_remote_code: bool | None = False,
        providers: tuple[str, ...] | None = None,
        **kwargs,
    ) -> "OneRefExportedModel":
        """
        Args:
            pretrained_model_name_or_path: a directory that `oneref export` wrote, or the id of a repository with one.
            dtype: "auto"; the format of the weights was chosen at export.
            trust_remote_code: needed for the formats torch_export and aotinductor, because reading such a file runs
                code that is in it, wherever it comes from. ONNX files are data.
            providers: for ONNX Runtime, the execution providers in the order of preference.
            kwargs: `revision`, `token`, `cache_dir`, `local_files_only` and `force_download` for the Hub.

        Raises:
            ExportError: if there is no exported model, it needs trust or a missing package, or its file is broken.
            TypeError: if there are other arguments.
        """
        unknown = sorted(set(kwargs).difference(_HUB_ARGUMENTS, _IGNORED_ARGUMENTS))
        if unknown:
            raise TypeError(f"An exported model cannot be loaded with the argument {unknown[0]!r}.")
        hub_arguments = {name: value for name, value in kwargs.items() if name in _HUB_ARGUMENTS}
        folder = _local(pretrained_model_name_or_path, **hub_arguments)
        config = _read_config(folder, pretrained_model_name_or_path)
        export = config.export
        if export.get("format") not in FORMATS or export.get("task") not in OUTPUTS:
            raise ExportError(
                f"'{folder}' was exported as {export.get('format')!r} for {export.get('task')!r}, which this version "
                f"cannot run; it runs {', '.join(FORMATS)} for {' or '.join(OUTPUTS)}."
            )
        wanted = str(dtype).removeprefix("torch.")
        if wanted not in ("None", "auto", export.get("dtype")):
            raise ExportError(
                f"'{folder}' was exported in {export.get('dtype')}, which cannot be changed to {wanted} any more; "
                "export the model once more with that dtype."
            )
        runtime = FORMATS[export["format"]]
        if runtime.RUNS_CODE and not trust_remote_code:
            raise ExportError(
                f"'{folder}' holds a program of the format {export['format']}, and reading that runs code in it; if "
                "you trust its author, pass trust_remote_code=True (oneref: --trust-remote-code)."
            )
        path = folder / runtime.FILE
        if not path.is_file():
            raise ExportError(f"'{folder}' lacks its {runtime.FILE}; export the model once more.")
        options = {} if providers is None else {"providers": providers}
        try:
            runner = runtime.Runner(path, **options)
        except ExportError:
            raise
        except Exception as error:  # whatever a damaged file brings about
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ExportError(f"'{path}' cannot be read: {reason}") from error
        return cls(config, runner)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of the inputs and outputs."""
        return torch.float32

    def to(self, device) -> "OneRefExportedModel":
        if torch.device(device).type != "cpu":
            raise ValueError(f"An exported model runs on the CPU and cannot be moved to {device}; pass device='cpu'.")
        return self

    def can_generate(self) -> bool:
        """False: it answers, it does not write. (Pipelines ask.)"""
        return False

    def forward(
        self,
        pixel_values: torch.FloatTensor,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        predict_masks: bool = True,
    ) -> OneRefGroundingOutput | OneRefSegmentationOutput:
        """
        Args:
            pixel_values, input_ids, attention_mask, pixel_mask: as in [`OneRefForGrounding.forward`], one picture for
                each phrase, at the image size of the export.
            predict_masks: False leaves out the masks; they are computed all the same.

        Returns:
            `pred_boxes`, `scores`, `similarity_map` and, where the model segments, `pred_masks`; no embeddings, hidden
            states or losses.

        Raises:
            ValueError: if the shapes do not fit.
        """
        side = self.config.image_size
        if tuple(pixel_values.shape) != (len(input_ids), self.config.num_channels, side, side):
            raise ValueError(
                f"pixel_values have the shape {tuple(pixel_values.shape)}, but this model was exported for pictures "
                f"of {side}x{side} pixels, and {len(input_ids)} phrases need as many of them."
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if pixel_mask is None:
            pixel_mask = torch.ones_like(pixel_values[:, 0])
        inputs = {
            "pixel_values": pixel_values.float().contiguous(),
            "input_ids": input_ids.long().contiguous(),
            "attention_mask": attention_mask.long().contiguous(),
            "pixel_mask": pixel_mask.long().contiguous(),
        }
        with torch.no_grad():
            answers = dict(zip(OUTPUTS[self.config.export["task"]], self._runner(inputs)))
        if "pred_masks" not in answers:
            return OneRefGroundingOutput(**answers)
        if not predict_masks:
            del answers["pred_masks"]
        return OneRefSegmentationOutput(**answers)


def _local(name: str | os.PathLike, **hub_arguments) -> Path:
    """The directory, downloaded if need be."""
    if Path(name).is_dir():
        return Path(name)
    if Path(name).exists():
        raise ExportError(f"'{name}' is a file, but an exported model is a directory.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(os.fspath(name), **hub_arguments))
    except (OSError, HFValidationError) as error:
        raise ExportError(f"There is no directory '{name}', and no such model on the Hub could be read.") from error


def _read_config(folder: Path, name: str | os.PathLike) -> OneRefConfig:
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ExportError(f"'{name}' is no exported model, for it has no config.json.") from error
    except (OSError, ValueError) as error:
        raise ExportError(f"'{path}' cannot be read: {error}") from error
    if not isinstance(content.get("export"), dict):
        kind = (content.get("architectures") or ["model of another kind"])[0]
        raise ExportError(f"'{name}' holds a {kind} that was not exported; `oneref export` makes such a directory.")
    return OneRefConfig.from_dict(content)
