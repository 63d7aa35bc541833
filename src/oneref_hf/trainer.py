# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Trainers: what fine-tuning and MRefM pre-training of OneRef add to `transformers.Trainer`.

The models compute their losses themselves, so the stock Trainer works too. These add losses by name, averages that do
not depend on how a batch is spread over processes and accumulated steps, exact scores while training, the original's
optimiser and schedule, checkpoints that are complete or not there, and the alternating steps of MRefM.
"""

from __future__ import annotations

import copy
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils import DistributedType, gather_object, send_to_device
from safetensors import SafetensorError
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, get_last_checkpoint, has_length, rotate_checkpoints

from .data.collator import ReferringCollator
from .data.training import EpochSampler
from .metrics import RecMetric, ResMetric, box_iou, mask_overlap
from .trainer_callbacks import AverageWeights, SaveAfterScores, StopOnSigterm, TellEpoch
from .trainer_norm import synchronise_batch_norms


SCHEDULES = ("cosine_per_epoch", "cosine_per_step")
_PARTIAL = ".partial"
_REPLACED = "replaced"
_NOT_FOR_THE_MODEL = ("sample_ids", "loss_scales", "pixel_values_unnormalized")
_DATA_PARALLEL = (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.MULTI_XPU)


class TrainingStopped(RuntimeError):
    """Training cannot go on; the message says what happened, where, and what to do."""


class OneRefTrainer(Trainer):
    """Trains boxes (REC), masks (RES) or both; which, say the model's `loss_weights` and the samples' labels.

    Samples come from `data.training.ReferringSamples`, whose order is this trainer's; anything with the same entries
    works as well. `args` is copied, and of the copy `remove_unused_columns` and `logging_nan_inf_filter` are switched
    off, because this trainer does without both. A process uses one GPU; for more, start more.

    Parameters that no active loss reaches are frozen during `train`, so data-parallel training need not search for
    them. Losses are averaged over the whole global batch, also those over a varying number of masked patches or words;
    dropping the worst words stays per process, as in the original, and a contrastive loss sees one accumulated step.

    Args:
        model: a OneRef model with a head.
        args: `transformers.TrainingArguments`.
        schedule: `"cosine_per_epoch"` is the original's, without warm-up: after each epoch the rate becomes
            `0.5 * (1 + cos(pi * epoch / epochs))` of the initial one. `"cosine_per_step"` moves on every step. Both
            count on `args.num_train_epochs`, also where `max_steps` ends training sooner. None leaves it to
            `args.lr_scheduler_type`.
        freeze_backbone: the first stage of the paper: the encoder gets no gradient (drop path stays active in it).
        decay_everything: weight decay on every parameter as in the original, biases and norms included. False leaves
            those out, as Transformers does.
        sync_batch_norm: whether the batch norms of the mask head take their statistics over all processes. False is
            the original: every process for itself. With accumulation they see one step's share either way.
        ema_decay: keeps an exponential moving average of the weights, which evaluation and the best model then use.
        others: those of `transformers.Trainer`.

    Raises:
        ValueError: if there is no such schedule.
    """

    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        data_collator: Callable | None = None,
        *others,
        schedule: str | None = None,
        freeze_backbone: bool = False,
        decay_everything: bool = True,
        sync_batch_norm: bool = True,
        ema_decay: float | None = None,
        **more,
    ):
        if schedule not in (None, *SCHEDULES):
            raise ValueError(f"schedule is one of {', '.join(SCHEDULES)} or None, not {schedule!r}.")
        args = copy.copy(args)
        args.remove_unused_columns = args.logging_nan_inf_filter = False
        args._n_gpu = min(args.n_gpu, 1)  # else one process would spread every batch over all GPUs in sight
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False
        if freeze_backbone:
            model.freeze_backbone()
        if sync_batch_norm and args.world_size > 1 and hasattr(model, "mask_head"):
            synchronise_batch_norms(model.mask_head, args.device.type)
        collator = data_collator or ReferringCollator(model.config.pad_token_id)
        super().__init__(model, args, collator, *others, **more)
        self.schedule, self.decay_everything = schedule, decay_everything
        # The mask head is half of a step, and of no use to one without its losses.
        weights = getattr(model.config, "loss_weights", None) or {}
        self._masks_idle = hasattr(model, "mask_head") and not (weights.get("mask_focal") or weights.get("mask_dice"))
        self._steps_per_epoch: int | None = None
        self._losses: dict[str, torch.Tensor] = {}
        self._loss_steps: dict[str, int] = {}
        self._saving_to: str | None = None
        self._stop = StopOnSigterm()
        self.add_callback(SaveAfterScores())
        self.add_callback(self._stop)
        self.average: AverageWeights | None = None
        if ema_decay is not None:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise ValueError("Averaged weights (ema_decay) need the whole model on each device: no FSDP, no ZeRO.")
            self.average = AverageWeights(model, ema_decay)
            self.add_callback(self.average)

    # Data ---------------------------------------------------------------------------------------------------------
    def get_train_dataloader(self) -> DataLoader:
        """As in Transformers; a stream, which brings its own split over processes, is taken as it is."""
        if not isinstance(self.train_dataset, IterableDataset):
            return super().get_train_dataloader()
        return DataLoader(
            self.train_dataset,
            batch_size=self._train_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def _get_dataloader(self, dataset, *others, is_training: bool = False, **more) -> DataLoader:
        """As in Transformers, but only training may drop an incomplete last batch."""
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and is_training
        try:
            return super()._get_dataloader(dataset, *others, is_training=is_training, **more)
        finally:
            self.args.dataloader_drop_last = drop_last

    def _get_train_sampler(self, train_dataset=None):
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        number = len(self.train_dataset)
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        # Else the parts that a step is split into would decide how many an epoch has.
        whole_steps = self.args.dataloader_drop_last and number >= step
        sampler = EpochSampler(number, seed, step if whole_steps else 1)
        self.pop_callback(TellEpoch)
        self.add_callback(TellEpoch(sampler))
        return sampler

    def step_inputs(self, batch: Mapping, global_step: int) -> dict:
        """What of a batch the model gets at a step; `MRefMTrainer` chooses here."""
        return dict(batch)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, None]:
        """The batches of one optimiser step, with the factors that make their losses global means."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = [self.step_inputs(batch, self.state.global_step) for batch in batches]
        if batches and len(batches) * self.args.world_size > 1:
            for batch, scales in zip(batches, self._loss_scales(batches)):
                batch["loss_scales"] = scales
        return batches, None

    def loss_counts(self, inputs: Mapping) -> dict[str, torch.Tensor | int]:
        """Over how many things a loss is a mean, by its name; `""` stands for all losses that are not named."""
        return {"": len(inputs["input_ids"])}

    def _loss_scales(self, batches: list[dict]) -> list[dict[str, torch.Tensor]]:
        """Factors f of each batch's mean losses m, so that the mean of f * m over batches and processes is the mean
        over everything: f = its count / the mean count."""
        counts = [self.loss_counts(batch) for batch in batches]
        names = list(counts[0])
        table = torch.tensor([[float(count[name]) for name in names] for count in counts], device=self.args.device)
        mean = self.accelerator.reduce(table.mean(0), "mean")
        return [dict(zip(names, row)) for row in table / mean.clamp(min=1e-9)]

    def _prepare_input(self, data):
        """On the device, but in its own precision: Transformers would have DeepSpeed round boxes to bfloat16, too. The
        models take pictures in any."""
        return send_to_device(data, self.args.device)

    # Loss ---------------------------------------------------------------------------------------------------------
    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        """The sum of the model's losses, each as a mean over the global batch, noted by name for the log.

        Raises:
            TrainingStopped: if a loss is not finite, on every process.
            ValueError: if no loss is active.
        """
        given = {name: value for name, value in inputs.items() if name not in _NOT_FOR_THE_MODEL}
        if model.training and self._masks_idle:
            given["predict_masks"] = False
        outputs = model(**given)
        if outputs.loss_dict is None:
            raise ValueError(
                "No loss is active: check the model's loss_weights against the labels in the batch "
                f"({', '.join(name for name in inputs if name.endswith('_labels')) or 'there are none'})."
            )
        scales = inputs.get("loss_scales", {})
        losses = {name: _scaled(name, value, scales) for name, value in outputs.loss_dict.items()}
        if model.training:
            self._check_together(losses, inputs.get("sample_ids"))
            self._note(losses)
        loss = sum(losses.values())
        return (loss, outputs) if return_outputs else loss

    def _check_together(self, losses: Mapping[str, torch.Tensor], sample_ids: list[str] | None) -> None:
        """All processes learn whether any of them got SIGTERM or a loss that is not finite."""
        finite = torch.stack([loss.detach() for loss in losses.values()]).isfinite().all()
        flags = torch.stack([~finite, torch.tensor(self._stop.requested, device=finite.device)]).float()
        broken, stop = self.accelerator.reduce(flags, "sum").tolist()
        self._stop.agreed = stop > 0
        if broken:
            what = " and ".join(f"{name} is {x.item()}" for name, x in losses.items() if not x.isfinite())
            where = f" for the samples {', '.join(sample_ids)}" if what and sample_ids else ""
            found = ", ".join(filter(None, gather_object([what + where])))
            raise TrainingStopped(
                f"The loss {found} in step {self.state.global_step + 1}, which was not taken. Continue from the last "
                "checkpoint with a lower learning rate or without these samples."
            )

    def _note(self, losses: Mapping[str, torch.Tensor]) -> None:
        for name, loss in losses.items():
            self._losses[name] = self._losses.get(name, 0) + loss.detach().float()
            self._loss_steps[name] = self._loss_steps.get(name, 0) + 1

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds every loss by its name, averaged over processes and the steps of the log window that computed it."""
        if "loss" in logs and self._losses:
            names = sorted(self._losses)
            means = torch.stack([self._losses[name] / self._loss_steps[name] for name in names])
            logs = {**logs, **dict(zip(names, self.accelerator.reduce(means, "mean").tolist()))}
            self._losses, self._loss_steps = {}, {}
        super().log(logs, start_time)

    # Optimisation -------------------------------------------------------------------------------------------------
    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """As in Transformers, with parameters that no active loss reaches frozen for the time."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self.last_checkpoint() or True  # of which Transformers says that there is none
        with self._unused_parameters_frozen():
            try:
                result = super().train(resume_from_checkpoint, **kwargs)
                # What came too late for a step to notice.
                requested = torch.tensor(float(self._stop.requested), device=self.args.device)
                self._stop.agreed = self.accelerator.reduce(requested, "sum").item() > 0
                return result
            finally:
                self._stop.restore()

    def _run_epoch(self, **options) -> None:
        """As in Transformers, which takes one more step when it continues a run that has taken all of them."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**options)

    def _step_kinds(self) -> list[int]:
        """Global steps that stand for every kind of step."""
        return [0]

    def parameters_reached(self, batch: Mapping, global_step: int) -> set[str]:
        """Names of the trainable parameters that the losses of such a step depend on, found by one forward pass."""
        model = self.accelerator.unwrap_model(self.model)
        # FSDP and DeepSpeed take the model to the device of the inputs only later.
        inputs = self._prepare_inputs(self.step_inputs(batch, global_step))
        inputs = send_to_device(inputs, next(model.parameters()).device)
        was_training = model.training
        model.eval()
        reached = _leaves(self.compute_loss(model, inputs))
        model.train(was_training)
        return {name for name, parameter in model.named_parameters() if id(parameter) in reached}

    @contextmanager
    def _unused_parameters_frozen(self):
        stream = isinstance(self.train_dataset, IterableDataset)
        batch = self.data_collator([next(iter(self.train_dataset)) if stream else self.train_dataset[0]])
        parameters = dict(self.accelerator.unwrap_model(self.model).named_parameters())
        self._reached = {step: self.parameters_reached(batch, step) for step in self._step_kinds()}
        used = set().union(*self._reached.values())
        frozen = [p for name, p in parameters.items() if p.requires_grad and name not in used]
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        if self.decay_everything:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def set_initial_training_values(self, args, dataloader):
        values = super().set_initial_training_values(args, dataloader)
        self._steps_per_epoch = values[1] if has_length(dataloader) else None
        return values

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        if self.schedule is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        per_epoch, epochs = self._steps_per_epoch, self.args.num_train_epochs
        if per_epoch is None:
            if self.schedule == "cosine_per_epoch":
                raise ValueError(
                    "A stream has no epochs to move the learning rate by; use schedule 'cosine_per_step'."
                )
            per_epoch, epochs = num_training_steps, 1

        def factor(step: int) -> float:
            done = step // per_epoch if self.schedule == "cosine_per_epoch" else step / per_epoch
            return 0.5 * (1 + math.cos(math.pi * min(done / epochs, 1)))

        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_grad_norm(self, model: nn.Module, grad_norm=None):
        grad_norm = super()._get_grad_norm(model, grad_norm)
        # DeepSpeed may know no norm.
        if self.accelerator.scaler is None and grad_norm is not None and not math.isfinite(grad_norm):
            raise TrainingStopped(
                f"The losses are finite but their gradient is not in step {self.state.global_step + 1}, which was not "
                "taken. Continue from the last checkpoint with a lower learning rate."
            )
        return grad_norm

    @property
    def stopped_early(self) -> bool:
        """Whether a process got SIGTERM during the last `train`, which then saved a checkpoint and ended."""
        return self._stop.agreed

    # Evaluation ---------------------------------------------------------------------------------------------------
    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The project's metrics on every sample exactly once: box accuracy, and mask IoU where the model segments.

        Metrics are those of `RecMetric` and `ResMetric`, with the prefix and `_` before their names.
        """
        model = self._evaluated_model()
        model.eval()
        boxes, masks = RecMetric(), ResMetric()
        for batch in dataloader:
            inputs = self._prepare_inputs(batch)
            names = ("pixel_values", "input_ids", "attention_mask")
            with torch.no_grad(), self.compute_loss_context_manager():
                outputs = model(**{name: inputs[name] for name in names})
            # What accelerate repeats to fill the last batch is cut off again here.
            gather = self.accelerator.gather_for_metrics
            boxes.update_iou(gather(box_iou(outputs.pred_boxes.float(), inputs["box_labels"])))
            if "pred_masks" in outputs and "mask_labels" in inputs:
                masks.update_overlap(*gather(mask_overlap(outputs.pred_masks.float(), inputs["mask_labels"])))
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        scores = boxes.compute()
        if masks.sums[0] > 0:
            scores = {**scores, **masks.compute()}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        return EvalLoopOutput(None, None, metrics, scores["samples"])

    def _evaluated_model(self) -> nn.Module:
        if self.average is not None:
            return self.average.module
        if self.is_in_train or self.accelerator._models:
            return self.model
        # Whole on each device: without an optimiser, FSDP2 and ZeRO-2 take no model.
        return self.accelerator.prepare_model(self.model, device_placement=True, evaluation_mode=True)

    # Checkpoints --------------------------------------------------------------------------------------------------
    def _determine_best_metric(self, metrics: dict[str, float], trial) -> bool:
        """As in Transformers; the best is saved even where no checkpoint is due."""
        is_best = super()._determine_best_metric(metrics, trial)
        self.control.should_save |= is_best and self.args.save_strategy != "no"
        return is_best

    def _get_output_dir(self, trial) -> str:
        return self._saving_to or super()._get_output_dir(trial)

    def last_checkpoint(self) -> str | None:
        """The newest checkpoint in `args.output_dir`; all processes ask together."""
        run_dir = Path(self.args.output_dir)
        if self.accelerator.is_local_main_process:
            for old in (run_dir / _PARTIAL / _REPLACED).glob("checkpoint-*"):
                if not (run_dir / old.name).exists():  # a kill came between the two moves of `_replace`
                    os.replace(run_dir / _PARTIAL / old.name, run_dir / old.name)
        self.accelerator.wait_for_everyone()
        return get_last_checkpoint(str(run_dir)) if run_dir.is_dir() else None

    def _save_checkpoint(self, model: nn.Module, trial) -> None:
        """As in Transformers, but under a temporary name first: a checkpoint is complete or not there.

        Raises:
            OSError: if it cannot be written, with one sentence; what was saved before is as it was.
        """
        try:
            saved = self._save_complete_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:  # a full disk may be any of them
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise OSError(
                f"The checkpoint of step {self.state.global_step} cannot be written to '{self.args.output_dir}' "
                f"({reason}); the one before is complete. Make room and give the same command again."
            ) from error
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(saved))

    def _save_complete_checkpoint(self, model: nn.Module, trial) -> Path:
        run_dir = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        partial, final = run_dir / _PARTIAL, run_dir / name
        if self.accelerator.is_local_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        best = self.state.best_model_checkpoint
        at_best = run_dir / f"checkpoint-{self.state.best_global_step}"
        if at_best.name == name or at_best.is_dir():
            best = str(at_best)
        self._saving_to = str(partial)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving_to = None
        self.state.best_model_checkpoint = best
        if self.args.should_save:
            self.state.save_to_json(str(partial / name / "trainer_state.json"))
            if self.average is not None:
                self.average.save(partial / name)
        self.accelerator.wait_for_everyone()
        with self.accelerator.main_process_first():  # the others find something only where disks are not shared
            if self.accelerator.is_local_main_process and (partial / name).is_dir():
                _replace(final, partial / name)
                shutil.rmtree(partial, ignore_errors=True)
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(run_dir),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=best,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()
        return final

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Waits until the checkpoint has its final name; `_save_checkpoint` pushes it then."""

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        # A pickle, which nothing here reads and nobody should download.
        Path(output_dir or self.args.output_dir, "training_args.bin").unlink(missing_ok=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.average is not None:
            self.average.load(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.average is not None:
            self.average.load(Path(self.state.best_model_checkpoint))
            self.model.load_state_dict(self.average.module.state_dict())


class MRefMTrainer(OneRefTrainer):
    """Mask Referring Modeling (section 3.3 of the paper): image steps and text steps in turn.

    With both on, even global steps mask the image and leave the text intact, odd ones the reverse. The visual tokens
    of masked patches come from `visual_tokenizer`. Which losses are on, say the model's `loss_weights`: `mim` and
    `visual_relation` make image steps, `mlm` and `semantic_relation` text steps; if both of a kind are 0, all steps
    are of the other. Box and similarity losses are part of every step if their weights and labels are there.

    Args:
        visual_tokenizer: `VqkdModel` or anything with its `get_codebook_indices`; frozen here and moved to the
            training device. Not needed without the loss `mim`.
        others: those of `OneRefTrainer`.

    Raises:
        ValueError: if all four losses are off, or `mim` is on without a tokenizer.
    """

    def __init__(self, model: nn.Module, args: TrainingArguments, *others, visual_tokenizer=None, **more):
        super().__init__(model, args, *others, **more)
        weights = model.config.loss_weights
        kinds = {"image": ("mim", "visual_relation"), "text": ("mlm", "semantic_relation")}
        self.kinds = [kind for kind, names in kinds.items() if any(weights[name] for name in names)]
        if not self.kinds:
            raise ValueError("MRefM needs one of the losses mim, visual_relation, mlm and semantic_relation.")
        if weights["mim"] and visual_tokenizer is None:
            raise ValueError("The loss mim needs a visual_tokenizer: VqkdModel.from_pretrained(...).")
        if isinstance(visual_tokenizer, nn.Module):
            visual_tokenizer.to(self.args.device).eval().requires_grad_(False)
        self.visual_tokenizer = visual_tokenizer
        self._weights = weights

    def kind_of(self, global_step: int) -> str:
        """`"image"` or `"text"`."""
        return self.kinds[global_step % len(self.kinds)]

    def step_inputs(self, batch: Mapping, global_step: int) -> dict:
        shared = ("pixel_values", "input_ids", "attention_mask", "box_labels", "mask_labels", "sample_ids")
        inputs = {name: batch[name] for name in shared if name in batch}
        image_step = self.kind_of(global_step) == "image"
        if image_step:
            inputs["bool_masked_pos"] = batch["bool_masked_pos"]
            if self._weights["mim"]:
                inputs["pixel_values_unnormalized"] = batch["pixel_values_unnormalized"]
        else:
            inputs["input_ids"] = batch["mlm_input_ids"]
            # Two values instead of the count, which would have a compiled model compiled anew in every step.
            after = self.model.config.mlm_drop_worst_after
            inputs["global_step"] = after + 1 if global_step > after else 0
        for name in ("visual_relation",) if image_step else ("mlm", "semantic_relation"):
            if self._weights[name]:
                inputs[f"{name}_labels"] = batch[f"{name}_labels"]
        return inputs

    def loss_counts(self, inputs: Mapping) -> dict[str, torch.Tensor | int]:
        counts = super().loss_counts(inputs)
        if "pixel_values_unnormalized" in inputs:
            counts["mim"] = inputs["bool_masked_pos"].sum()
        if "mlm_labels" in inputs:
            masked, config = int((inputs["mlm_labels"] != -100).sum()), self.model.config
            drops = inputs["global_step"] > config.mlm_drop_worst_after
            counts["mlm"] = max(int(masked * (1 - config.mlm_drop_worst_ratio)), 1) if drops else masked
        return counts

    def _prepare_inputs(self, inputs):
        """On the device, and with the visual tokens of the masked patches."""
        inputs = super()._prepare_inputs(inputs)
        if "pixel_values_unnormalized" in inputs and "visual_token_labels" not in inputs:
            tokens = self.visual_tokenizer.get_codebook_indices(inputs["pixel_values_unnormalized"])
            inputs["visual_token_labels"] = tokens.masked_fill(~inputs["bool_masked_pos"], -100)
        return inputs

    def _step_kinds(self) -> list[int]:
        return list(range(len(self.kinds)))

    def training_step(self, model: nn.Module, inputs: dict, num_items_in_batch=None) -> torch.Tensor:
        """As in Transformers. Parameters of the other kind of step get no gradient and so are not updated."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._every_parameter_needs_a_gradient:
            for parameter in self._idle_parameters():
                parameter.grad = None
        return loss

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training and self._every_parameter_needs_a_gradient:
            # Data-parallel training waits for a gradient of every parameter, or searches for those without in every
            # step. Nought times one of their values is cheaper; `training_step` takes the gradient away again.
            loss = loss + 0.0 * sum(parameter.flatten()[0] for parameter in self._idle_parameters())
        return (loss, outputs) if return_outputs else loss

    @property
    def _every_parameter_needs_a_gradient(self) -> bool:
        return self.accelerator.distributed_type in _DATA_PARALLEL

    def _idle_parameters(self) -> list[nn.Parameter]:
        """Trainable parameters that this kind of step does not reach."""
        reached = self._reached[self.state.global_step % len(self.kinds)]
        named = self.accelerator.unwrap_model(self.model).named_parameters()
        return [parameter for name, parameter in named if parameter.requires_grad and name not in reached]


def _replace(old: Path, new: Path) -> None:
    """Gives a checkpoint its name, which an earlier save of the same step may have.

    Removing the old one takes time in which a kill would leave a part of it, so it moves out of the way first.
    """
    if old.exists():
        aside = new.parent / _REPLACED / old.name
        aside.parent.mkdir()
        os.rename(old, aside)
    os.replace(new, old)


def _scaled(name: str, loss: torch.Tensor, scales: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A contrastive loss is over all processes already."""
    if not scales or name == "contrastive":
        return loss
    scale = scales.get(name, scales[""])
    # A mean over nothing is NaN; it counts for nothing.
    return torch.where(scale > 0, loss * scale, torch.zeros_like(loss))


def _leaves(loss: torch.Tensor) -> set[int]:
    """Ids of the leaf tensors that a result depends on."""
    found, seen, waiting = set(), set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting.extend(parent for parent, _ in node.next_functions)
    return found


__all__ = ["MRefMTrainer", "OneRefTrainer", "TrainingStopped"]
