# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Many phrases about one picture: time and memory per phrase, and what sharing layers of the image saves and costs.

    python benchmarks/many_phrases.py [--size base] [--task grounding] [--phrases 1 16 100 300]
    python benchmarks/many_phrases.py --model DIR --scenes 300 [--shared-layers 0 2 4 6]

The first prints how long `answer_phrases` takes for so many phrases of three to twenty words about one picture, and
how much memory beyond the model's own. The second asks a trained model about drawn scenes, exactly and with
`shared_image_layers`, an approximation (see `Beit3Config`): how fast the answers come with 16 phrases per picture, how
much their boxes overlap with the exact ones, and how many of them are right.
"""

import statistics
from pathlib import Path

import torch
from measuring import (
    SIZES,
    TASKS,
    WORDS,
    PeakMemory,
    fail,
    interleaved,
    machine,
    parser_of,
    print_header,
    print_row,
    ratio,
)
from torch.nn.utils.rnn import pad_sequence

from oneref_hf import OneRefConfig, OneRefProcessor
from oneref_hf.loss_oneref import cxcywh_to_xyxy
from oneref_hf.metrics import box_iou, rec_accuracy
from oneref_hf.modeling_oneref import answer_phrases
from oneref_hf.pipeline_oneref import AutoModelForReferringExpression


SHARING_PHRASES = 16


def phrases_of_all_lengths(count: int, image_size: int) -> dict[str, torch.Tensor]:
    """One picture and `count` phrases of 5 to 22 tokens in no order."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, 23, (count,), generator=generator)
    ids = [torch.randint(WORDS.start, WORDS.stop, (length,), generator=generator) for length in lengths.tolist()]
    return {
        "pixel_values": torch.randn(1, 3, image_size, image_size, generator=generator),
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=1),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
    }


def measure_throughput(options):
    config = OneRefConfig(**SIZES[options.size])
    model = TASKS[options.task](config).eval().to(options.device, getattr(torch, options.dtype))
    print(f"{machine(options.device)}, {options.size}, {options.task}, {options.dtype}, {config.image_size} px")
    print_header("phrases", "seconds", "ms per phrase", "phrases/s", "memory, MB")
    memory = PeakMemory(options.device)
    answer_phrases(model, **on_device(phrases_of_all_lengths(2, config.image_size), model))  # warms up
    for count in sorted(options.phrases):
        inputs = on_device(phrases_of_all_lengths(count, config.image_size), model)
        function = {"all": lambda inputs=inputs: answer_phrases(model, **inputs)}
        with memory:
            rounds = options.rounds if count <= SHARING_PHRASES else 1  # what takes long varies little
            times = interleaved(function, rounds, options.device, warm_up=False)["all"]
        took = statistics.median(times)
        print_row(count, f"{took:.2f}", f"{1000 * took / count:.0f}", f"{count / took:.2f}", f"{memory.megabytes:.0f}")


def on_device(inputs: dict[str, torch.Tensor], model) -> dict[str, torch.Tensor]:
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    return {**inputs, "pixel_values": inputs["pixel_values"].to(model.dtype)}


def measure_sharing(options):
    from oneref_hf.data.scenes import SIZES as SCENE_SIZES
    from oneref_hf.data.scenes import SceneRecords

    if not Path(options.model).is_dir():
        fail(f"There is no model directory '{options.model}'.")
    model = AutoModelForReferringExpression.from_pretrained(options.model, dtype=options.dtype).to(options.device)
    processor = OneRefProcessor.from_pretrained(options.model)
    num_layers = model.config.num_hidden_layers
    layers = options.shared_layers or range(num_layers + 1)
    if not all(0 <= count <= num_layers for count in layers):
        fail(f"--shared-layers are numbers from 0 to {num_layers}, the number of layers of '{options.model}'.")

    side = processor.image_processor.size.height
    inputs = phrases_of_all_lengths(SHARING_PHRASES, side)
    inputs["input_ids"] %= model.config.vocab_size
    inputs = on_device(inputs, model)
    functions = {count: lambda count=count: with_sharing(model, inputs, count) for count in layers}
    times = interleaved({**functions, "exact": lambda: with_sharing(model, inputs, 0)}, options.rounds, options.device)
    records = SceneRecords("test", options.scenes, size=min(max(side, SCENE_SIZES[0]), SCENE_SIZES[1]))
    boxes, targets = scene_boxes(model, processor, records, layers)

    print(f"{machine(options.device)}, {num_layers} layers, {side} px, {options.dtype}, {options.scenes} scenes")
    print_header("shared layers", "phrases/s", "speed-up (min-max)", "IoU with the exact box", "accuracy@0.5")
    for count in layers:
        print_row(
            count,
            f"{SHARING_PHRASES / statistics.median(times[count]):.1f}",
            ratio(times["exact"], times[count]),
            f"{box_iou(corners(boxes[count]), corners(boxes[0]), 'xyxy').mean():.4f}",
            f"{rec_accuracy(boxes[count], targets):.2%}",
        )


def with_sharing(model, inputs: dict[str, torch.Tensor], shared_layers: int):
    model.config.shared_image_layers = shared_layers
    options = {"predict_masks": False} if hasattr(model, "mask_head") else {}
    return answer_phrases(model, **inputs, **options)


def corners(boxes_cxcywh: torch.Tensor) -> torch.Tensor:
    return cxcywh_to_xyxy(boxes_cxcywh).clamp(0, 1)


def scene_boxes(model, processor, records, layers) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
    """Predicted boxes of every record by number of shared layers, the exact ones among them, and the true boxes."""
    boxes = {count: [] for count in {0, *layers}}
    targets = []
    for record in records:
        inputs = processor(record["image"], record["phrase"], boxes=[record["box"]])
        targets.append(inputs.pop("box_labels"))
        inputs = on_device(inputs, model)
        for count, found in boxes.items():
            found.append(with_sharing(model, inputs, count).pred_boxes.cpu())
    return {count: torch.cat(found) for count, found in boxes.items()}, torch.cat(targets)


def main():
    parser = parser_of(__doc__)
    parser.add_argument("--size", choices=SIZES, default="base", help="of a model with random weights")
    parser.add_argument("--task", choices=TASKS, default="grounding")
    parser.add_argument("--phrases", type=int, nargs="+", default=[1, 16, 100, 300])
    parser.add_argument("--model", help="a trained model: measure what sharing layers costs")
    parser.add_argument("--scenes", type=int, default=300, help="drawn scenes to ask the model about")
    parser.add_argument("--shared-layers", type=int, nargs="+", help="numbers of layers (default: all)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.model is None:
        measure_throughput(options)
    else:
        measure_sharing(options)


if __name__ == "__main__":
    main()
