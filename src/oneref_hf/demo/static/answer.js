// Shows an answer (see `answering.answer`): the picture with its layers, what to show of them, and a table.
// Everything is drawn from `props.value`; nothing here asks the server. Gradio provides element, props and watch.
const find = (selector) => element.querySelector(selector);
const stage = find(".oneref-stage");
const kinds = [...element.querySelectorAll("[data-kind]")];

function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function place(image, { left, top, width }) {
  Object.assign(image.style, { left: left + "%", top: top + "%", width: width + "%" });
  return image;
}

const whole = { left: 0, top: 0, width: 100 };

/** The images of the stage with what decides whether they are seen, from the lowest to the topmost. */
let images = [];

function show() {
  const value = props.value;
  find(".oneref-empty").hidden = Boolean(value);
  find(".oneref-body").hidden = !value;
  if (!value) return;
  stage.style.setProperty("--ratio", value.width / value.height);
  images = [
    { kind: "picture", place: whole, image: make("img", { src: value.picture, alt: "" }) },
    ...value.answers.map(({ heat }, answer) => ({
      kind: "heat", answer, place: whole, image: make("img", { src: heat, alt: "" }),
    })),
    ...value.layers.map((layer) => ({ ...layer, place: layer, image: make("img", { src: layer.src, alt: "" }) })),
  ];
  stage.replaceChildren(...images.map(({ image, place: where }) => place(image, where)));
  kinds.find(({ dataset }) => dataset.kind === "mask").closest("label").hidden =
    !value.layers.some(({ kind }) => kind === "mask");

  find("tbody").replaceChildren(...value.answers.map((answer, number) => {
    const box = make("input", { type: "checkbox", checked: true });
    box.dataset.answer = number;
    const swatch = make("i");
    swatch.style.background = answer.colour;
    const bar = make("b");
    bar.style.width = 100 * answer.score + "%";
    return make("tr", {},
      make("th", { scope: "row" }, make("label", { title: "Show or hide" }, box, swatch, answer.phrase)),
      make("td", { className: "number" }, answer.score.toFixed(3), make("span", { className: "bar" }, bar)),
      make("td", { className: "box" }, answer.box.map((side) => side.toFixed(1)).join(", ")),
    );
  }));
  const heats = find(".oneref-heats");
  heats.replaceChildren(heats.firstElementChild, ...value.answers.map((answer, number) => {
    const choice = make("input", { type: "radio", name: "oneref-heat", checked: number === 0, value: number });
    return make("label", {}, choice, make("span", {}, answer.phrase));
  }));
  update();
}

/** Shows and hides what the switches say. */
function update() {
  const value = props.value;
  const on = Object.fromEntries(kinds.map(({ dataset, checked }) => [dataset.kind, checked]));
  on.outline = on.mask;
  const shown = value.answers.map((_, number) => find(`[data-answer="${number}"]`).checked);
  const heat = on.heat ? Number(find("[name=oneref-heat]:checked").value) : null;
  for (const item of images) {
    item.image.hidden =
      item.kind === "picture" ? heat !== null
      : item.kind === "heat" ? item.answer !== heat
      : !(on[item.kind] && shown[item.answer]);
  }
  find(".oneref-heats").hidden = heat === null || value.answers.length < 2;
  find(".oneref-scale").hidden = heat === null;
  if (heat !== null) {
    const { low, high } = value.answers[heat];
    find(".oneref-scale .low").textContent = low.toFixed(2);
    find(".oneref-scale .high").textContent = high.toFixed(2);
  }
  const seen = value.answers.filter((_, number) => shown[number]);
  stage.setAttribute("aria-label", (heat === null ? "" : `Heat map of “${value.answers[heat].phrase}” over `)
    + `${value.name}; marked: ${seen.map(({ phrase }) => phrase).join("; ") || "nothing"}.`);
}

/** The picture as it is shown, at the size at which it was drawn. */
async function savePicture() {
  const base = images[0].image;
  const canvas = make("canvas", { width: base.naturalWidth, height: base.naturalHeight });
  const context = canvas.getContext("2d");
  for (const { image, place: { left, top } } of images) {
    if (image.hidden) continue;
    await image.decode();
    context.drawImage(image, Math.round((left / 100) * canvas.width), Math.round((top / 100) * canvas.height));
  }
  canvas.toBlob((blob) => save(blob, "png"), "image/png");
}

function save(blob, ending) {
  const link = make("a", {
    href: URL.createObjectURL(blob),
    download: `${props.value.name.replace(/\.[^.]*$/, "")}.oneref.${ending}`,
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

element.addEventListener("change", update);
element.addEventListener("click", ({ target }) => {
  if (target.dataset.save === "picture") savePicture();
  if (target.dataset.save === "json") save(new Blob([props.value.json], { type: "application/json" }), "json");
});
watch("value", () => {
  show();
  if (props.value && window.innerWidth < 900) {
    const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    element.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
  }
});
show();
