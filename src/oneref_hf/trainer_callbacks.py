# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""What the trainers do at the edges of a step: which epoch it is, stopping on request, and averaging of weights."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

from safetensors.torch import load_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy


AVERAGED_FOLDER = "averaged"


class TellEpoch(TrainerCallback):
    """Tells the sampler the epoch, also in the epoch that a resumed run begins in the middle of."""

    def __init__(self, sampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.set_epoch(int(state.epoch or 0))


class SaveAfterScores(TrainerCallback):
    """Where an evaluation at the end of the epoch follows a step at once, its checkpoint waits for that.

    A run that continues from one without it would never have these scores.
    """

    def __init__(self):
        self._due = False

    def on_step_end(self, args, state, control, **kwargs):
        ends = state.epoch % 1 == 0 or control.should_training_stop
        self._due = control.should_save and ends and args.eval_strategy == IntervalStrategy.EPOCH
        control.should_save &= not self._due

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_save |= self._due


class StopOnSigterm(TrainerCallback):
    """Ends training after the current step, with a checkpoint, once the process got SIGTERM.

    `requested` is what this process got; `agreed`, which the trainer sets, what any process got, so that all stop
    after the same step.
    """

    def __init__(self):
        self.requested = self.agreed = False
        self._previous = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.requested = self.agreed = False
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._request)

    def on_step_end(self, args, state, control, **kwargs):
        if self.agreed:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        # Transformers takes the stop for the end of the epoch, but a straight run would not be scored here.
        if self.agreed and state.epoch % 1:
            control.should_evaluate = control.should_save = False

    def on_train_end(self, args, state, control, **kwargs):
        self.restore()

    def restore(self) -> None:
        """Gives SIGTERM back to whoever handled it before."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None

    def _request(self, number, frame):
        self.requested = True


class AverageWeights(TrainerCallback):
    """Keeps an exponential moving average of the weights (and of the batch norms' statistics) beside the model.

    Args:
        model: the bare model.
        decay: of the average per step, for example 0.9999.

    Raises:
        ValueError: if decay is not between 0 and 1.
    """

    def __init__(self, model, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"The decay of the averaged weights lies between 0 and 1, not {decay}.")
        self.model = model
        self._averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)

    @property
    def module(self):
        """The model with the averaged weights."""
        return self._averaged.module

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self._averaged.n_averaged.zero_()  # the first step is copied
            self._averaged.update_parameters(self.model)

    def on_step_end(self, args, state, control, **kwargs):
        self._averaged.update_parameters(self.model)

    def save(self, checkpoint: Path) -> None:
        """As a model directory of its own inside the checkpoint."""
        self.module.save_pretrained(checkpoint / AVERAGED_FOLDER)

    def load(self, checkpoint: Path) -> None:
        """What `save` wrote.

        Raises:
            ValueError: if the checkpoint has no averaged weights.
        """
        path = Path(checkpoint, AVERAGED_FOLDER, "model.safetensors")
        if not path.is_file():
            raise ValueError(f"'{checkpoint}' has no averaged weights; resume without ema_decay.")
        self.module.load_state_dict(load_file(path))
        self._averaged.n_averaged.fill_(1)
