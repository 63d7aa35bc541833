# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Pre-trains OneRef by Mask Referring Modeling (section 3.3 of the paper), as a recipe says.

    accelerate launch --config_file training/accelerate/multi_gpu.yaml training/pretrain_mrefm.py \\
        training/recipes/mrefm_rec_base.yaml --data.images IMAGES
    python training/pretrain_mrefm.py training/recipes/mrefm_rec_base.yaml --smoke

Every value of a recipe can be changed: `--data.masking.strategy random`. `--smoke` trains a tiny model for two steps
per stage on synthetic pictures, on the CPU. A run that was stopped continues with the same command.
"""

import sys

from oneref_hf.training_command import main


if __name__ == "__main__":
    sys.exit(main("pretrain_mrefm", __doc__, tasks=("mrefm",)))
