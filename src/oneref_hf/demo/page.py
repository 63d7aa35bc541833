# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The page: what is where, and what happens on a click."""

import json
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path

import gradio as gr

from .answering import (
    MAX_MEGABYTES,
    MAX_MEGAPIXELS,
    TOO_LARGE,
    UNREADABLE,
    ModelSlot,
    Problem,
    answer,
    data_address,
    read_phrases,
    read_upload,
    return_memory,
)
from .examples import Example, thumbnail


STATIC = Path(__file__).parent / "static"
CSS = STATIC / "page.css"
_REFUSALS = {"maxBytes": MAX_MEGABYTES * 2**20, "tooLarge": TOO_LARGE, "unreadable": UNREADABLE}
JS = (STATIC / "page.js").read_text(encoding="utf-8").replace("REFUSALS", json.dumps(_REFUSALS))

# Purple to orange as in the heat map. The fonts come with Gradio.
_PLUM = gr.themes.Color(
    "#fbf4f9", "#f6e7f2", "#eccfe4", "#dca9cd", "#c678ae", "#ab4f8f", "#8a226a", "#731b58", "#5b1646", "#450f35",
    "#2b0821", name="plum",
)  # fmt: skip
THEME = gr.themes.Base(
    primary_hue=_PLUM,
    neutral_hue=gr.themes.colors.stone,
    font=[gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "Helvetica", "sans-serif"],
    font_mono=[gr.themes.LocalFont("IBM Plex Mono", weights=(400, 700)), "monospace"],
    radius_size=gr.themes.sizes.radius_lg,
).set(
    body_background_fill="*neutral_50",
    body_text_color_subdued="*neutral_600",
    block_info_text_color="*neutral_600",
    input_placeholder_color="*neutral_500",
    block_label_text_color="*neutral_700",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    button_primary_background_fill_dark="*primary_600",
    button_primary_background_fill_hover_dark="*primary_500",
)


def build_page(model: ModelSlot, examples: list[Example], keep_seconds: int) -> gr.Blocks:
    """The page.

    Args:
        model: that answers.
        keep_seconds: how long uploads are kept, at most about a tenth more.
    """
    page = gr.Blocks(
        title="OneRef",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(max(keep_seconds // 10, 1), keep_seconds),
    )
    with page:
        gr.HTML(_header(model), elem_id="oneref-header")
        loading = gr.HTML(_loading(model), elem_id="oneref-loading", visible=not model.ready)
        with gr.Row(elem_id="oneref-columns"):
            with gr.Column(scale=5, min_width=300):
                picture = gr.Image(
                    label="Picture",
                    sources=["upload"],
                    buttons=[],
                    height=280,
                    elem_id="oneref-picture",
                    alt_text="The picture to be asked",
                    placeholder=f"# Drop or paste a picture\nor click to choose one\n"
                    f"up to {MAX_MEGABYTES} MB and {MAX_MEGAPIXELS} megapixels",
                )
                # The file as it came, so that what is wrong with it can be said in our words. Not in a subclass, for
                # Gradio writes a stub file beside the source of each.
                picture.preprocess = lambda payload: None if payload is None else payload.path
                picture.async_move_resource_to_block_cache = _of_this_computer(
                    picture.async_move_resource_to_block_cache
                )
                phrases = gr.Textbox(
                    label="Phrases",
                    info="What to find, one phrase per line",
                    placeholder="the woman left of the old lady\nthe red cup",
                    lines=3,
                    max_lines=8,
                    elem_id="oneref-phrases",
                )
                button = gr.Button("Find", variant="primary", size="lg", elem_id="oneref-find")
                status = gr.HTML(
                    "",
                    elem_id="oneref-status",
                    js_on_load="document.addEventListener('oneref-problem', "
                    "({ detail }) => { props.value = detail; });",
                )
            with gr.Column(scale=7, min_width=300):
                shown = gr.HTML(
                    html_template=(STATIC / "answer.html").read_text(encoding="utf-8"),
                    js_on_load=(STATIC / "answer.js").read_text(encoding="utf-8"),
                    apply_default_css=False,
                    elem_id="oneref-answer",
                )
        cards = gr.HTML(
            _cards(examples),
            elem_id="oneref-examples",
            apply_default_css=False,
            js_on_load="element.addEventListener('click', ({ target }) => {"
            " const card = target.closest('[data-example]');"
            " if (card) trigger('pick', { number: Number(card.dataset.example) }); });",
        )
        gr.HTML(_footer(keep_seconds), elem_id="oneref-footer")

        def find(path: str | None, text: str) -> Iterator[tuple]:
            try:
                upload, wanted = read_upload(path), read_phrases(text)
            except Problem as problem:
                yield gr.skip(), _alert(problem)
                return
            if not model.ready:
                yield gr.skip(), _note("The model is still loading. The answer follows as soon as it is ready.")
            result = answer(model.finder(), upload, wanted)
            count = len(result["answers"])
            yield (
                result,
                _note(f"{count} {'phrase' if count == 1 else 'phrases'} found in {result['seconds']:.1f} seconds."),
            )
            return_memory()

        def check(path: str | None) -> str:
            try:
                read_upload(path)
            except Problem as problem:
                return _alert(problem)
            return ""

        def pick(event: gr.EventData) -> tuple[str, str]:
            example = examples[event.number]
            return str(example.path), "\n".join(example.phrases)

        def report() -> tuple:
            return gr.update(value=_loading(model), visible=not model.ready), gr.Timer(active=not model.ready)

        question = {
            "fn": find,
            "inputs": [picture, phrases],
            "outputs": [shown, status],
            "show_progress_on": shown,
            "concurrency_id": "model",
            "concurrency_limit": 1,
        }
        gr.on([button.click, phrases.submit], **question, api_name="find")
        cards.pick(pick, outputs=[picture, phrases], queue=False, api_visibility="private").then(
            **question, api_visibility="private"
        )
        picture.upload(check, picture, status, concurrency_limit=2, show_progress="hidden", api_visibility="private")
        picture.clear(lambda: "", outputs=status, queue=False, show_progress="hidden", api_visibility="private")
        timer = gr.Timer(1, active=not model.ready)
        gr.on(
            [page.load, timer.tick],
            report,
            outputs=[loading, timer],
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )
    return page.queue(max_size=100)


def _header(model: ModelSlot) -> str:
    notice = ""
    if model.shipped:
        notice = (
            "<p class='notice'><strong>This is the small model that ships with the package.</strong> It has learnt "
            "drawn scenes like the examples, and nothing of photographs: there its answers mean nothing.</p>"
        )
    return (
        "<header><div class='name'><h1>OneRef</h1><p>Say what you mean, and see where it is.</p></div>"
        "<p class='intro'>Give it a picture and a phrase such as “the cup left of the plate”. It marks the one thing "
        "that the phrase means, with a box and, if the model can, with a mask. It points at something even if the "
        f"picture does not hold what you ask for.</p><p class='model'>Model: <b>{escape(model.name)}</b></p>"
        f"{notice}</header>"
    )


def _of_this_computer(move: Callable) -> Callable:
    """Refuses the addresses that whoever calls the interface by a program may give: Gradio would fetch them whole."""

    async def move_file(place):
        if str(place).startswith(("http:", "https:")):
            raise gr.Error("The page takes uploads, not addresses.")
        return await move(place)

    return move_file


def _loading(model: ModelSlot) -> str:
    return (
        "<p><span class='dot' aria-hidden='true'></span>The model is loading "
        f"({model.seconds} s). You can choose a picture meanwhile.</p>"
    )


def _alert(problem: Problem) -> str:
    return f"<p class='problem' role='alert'>{escape(str(problem))}</p>"


def _note(text: str) -> str:
    return f"<p class='note' role='status'>{escape(text)}</p>"


def _cards(examples: list[Example]) -> str:
    cards = []
    for number, example in enumerate(examples):
        source = data_address(thumbnail(example, 240), "JPEG", quality=85)
        cards.append(
            f"<button type='button' data-example='{number}'><img src='{source}' alt='{escape(example.title)}'>"
            f"<span>{escape(example.phrases[0])}</span></button>"
        )
    return f"<h2>Examples</h2><div class='cards'>{''.join(cards)}</div>"


def _footer(keep_seconds: int) -> str:
    kept = "a minute" if keep_seconds < 90 else f"{round(keep_seconds / 60)} minutes"
    return (
        "<footer><details><summary>What the score means</summary><p>It compares how similar the phrase is to what the "
        "box holds and to the rest of the picture: 1 is perfect contrast, 0.5 no preference. It ranks the answers of "
        "one model. It is no probability.</p></details>"
        f"<p>Pictures go to the computer that runs this page and nowhere else, and are deleted there after {kept}.</p>"
        "</footer>"
    )
