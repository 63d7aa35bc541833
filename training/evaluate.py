# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Scores a model on splits of a referring data set, beside the paper's figures.

    accelerate launch training/evaluate.py --model converted/rec-base-refcoco --dataset converted/refcoco \\
        --images IMAGES --split val testA testB
    python training/evaluate.py --model DIR --dataset my_data --split test --protocol picture

Runs on any number of processes (without a GPU, by `--config_file training/accelerate/multi_cpu.yaml` in front of the
script) and continues where it was stopped. In the output: `SPLIT/predictions-*.parquet` with
every answer, `SPLIT/malformed.txt` where rows were left out, `results.json`, and `worst_cases.png`.
"""

import argparse
import json
import sys
from pathlib import Path

from oneref_hf.commands.predict import Session, add_run_options, complaints_as


CONVERSION = Path(__file__).resolve().parents[1] / "conversion"


class EvaluationError(Exception):
    """A sentence for the user."""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        with complaints_as(EvaluationError):
            evaluate(options)
    except EvaluationError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    return 0


def evaluate(options: argparse.Namespace) -> None:
    from oneref_hf.evaluation import evaluate_split
    from oneref_hf.evaluation_report import (
        breakdown_table,
        draw_worst_cases,
        left_out,
        results_table,
        update_card,
        write_results,
    )
    from oneref_hf.prediction import PredictionError

    card = options.update_card
    if card is not None and not card.is_file():
        raise PredictionError(f"There is no model card '{card}'.")
    model_name, dataset_name = (Path(text).resolve().name for text in (options.model, options.dataset))
    output = options.output or Path("outputs", "evaluate", f"{model_name}-on-{dataset_name}", options.protocol)
    session = Session(options)
    data_of_split = {split: session.data(split) for split in options.split}
    model, processor = session.model()
    results = {
        "model": options.model,
        "dataset": options.dataset,
        "protocol": options.protocol,
        "dtype": str(model.dtype).removeprefix("torch."),
        "splits": {},
    }
    worst = []
    for split, data in data_of_split.items():
        evaluation = evaluate_split(
            model,
            processor,
            data,
            output / split,
            split=split,
            accelerator=session.accelerator,
            protocol=options.protocol,
            tasks=options.task,
            run=session.run,
        )
        if evaluation is not None:
            paper = paper_figures(options.model, evaluation.sources, split)
            results["splits"][split] = {**evaluation.scores, **({"paper": paper} if paper else {})}
            results["dataset"] = data.name
            worst += evaluation.worst
    session.end()
    if not session.accelerator.is_main_process:
        return
    write_results(results, output / "results.json")
    partial = output / ".worst_cases.partial.png"
    draw_worst_cases(worst).save(partial)
    partial.replace(output / "worst_cases.png")
    if card is not None:
        update_card(card, results)
    print(results_table(results), breakdown_table(results), *left_out(results, output), sep="\n\n")
    print(f"\nwritten: {output}")


def paper_figures(model: str, sources: list[str], split: str) -> dict[str, float]:
    """The published scores of a released model on one split, in percent by the metric's name here.

    The model is known by the report of its conversion, or else by the name of its directory. Nothing is published for
    a mixture of data sets, and nothing is known where this script was copied away from `conversion/manifest.py`.
    """
    if not (CONVERSION / "manifest.py").is_file():
        return {}
    if str(CONVERSION) not in sys.path:
        sys.path.append(str(CONVERSION))
    from manifest import ManifestError, load_manifest

    try:
        manifest = load_manifest()
    except ManifestError as error:  # no reason to lose the scores
        print(f"evaluate: the paper's figures are missing, for {error}", file=sys.stderr)
        return {}
    row = _released_row(manifest, Path(model))
    if row is None or len(sources) != 1:
        return {}
    wanted = _squashed(sources[0])
    keys = [entry.key for entry in manifest.datasets.values() if wanted in (_squashed(entry.key), _squashed(entry.id))]
    names = {"acc": "accuracy@0.5", "miou": "miou", "oiou": "oiou"}
    return {
        names[result.metric]: result.value
        for result in row.results
        if result.dataset in keys and result.split == split
    }


def _released_row(manifest, model: Path):
    try:
        source = json.loads((model / "conversion_report.json").read_text(encoding="utf-8"))["source"]
    except (OSError, ValueError, KeyError):
        return next((row for row in manifest if row.name == model.name), None)
    held = (source["file"].replace("%2B", "+"), source["member"])
    return next((row for row in manifest if (row.file.rpartition("/")[2], row.member) == held), None)


def _squashed(name: str) -> str:
    """`refcoco+`, `refcoco-plus` and `RefCOCOplus` are the same."""
    return "".join(filter(str.isalnum, name.lower().replace("+", "plus")))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_run_options(parser)
    parser.add_argument("--split", nargs="+", required=True, help="one or more splits, for example val testA testB")
    parser.add_argument(
        "--protocol",
        choices=["canvas", "picture"],
        default="canvas",
        help="canvas: the paper's, IoU on the padded square; picture: IoU at the resolution of the picture",
    )
    parser.add_argument(
        "--task",
        nargs="+",
        choices=["rec", "res"],
        help="boxes, masks or both (default: what the model and the data have)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="default: outputs/evaluate/MODEL-on-DATASET/PROTOCOL"
    )
    parser.add_argument("--update-card", type=Path, metavar="CARD.md", help="write the scores into this model card")
    return parser


if __name__ == "__main__":
    sys.exit(main())
