# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Fine-tunes OneRef for boxes (REC), masks (RES) or both, as a recipe says.

    accelerate launch --config_file training/accelerate/multi_gpu.yaml training/finetune.py \\
        training/recipes/rec_single_base.yaml --variant refcoco --data.images IMAGES
    python training/finetune.py training/recipes/res_single_base.yaml --variant refcoco --smoke

Every value of a recipe can be changed: `--stages.fine-tuning.learning_rate 1e-5`. `--smoke` trains a tiny model for
two steps per stage on synthetic pictures, on the CPU. A run that was stopped continues with the same command.
"""

import sys

from oneref_hf.training_command import main


if __name__ == "__main__":
    sys.exit(main("finetune", __doc__, tasks=("rec", "res", "rec+res")))
