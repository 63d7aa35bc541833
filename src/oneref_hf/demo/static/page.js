() => {
  // Files that are chosen, pasted or dropped anywhere on the page, and Ctrl+Enter in the phrases. Python fills in what
  // is said of files that are refused before they are sent.
  const { maxBytes, tooLarge, unreadable } = REFUSALS;
  const fileInput = () => document.querySelector("#oneref-picture input[type=file]");

  const refuse = (sentence, file) => {
    const line = document.createElement("p");
    line.className = "problem";
    line.role = "alert";
    line.textContent = sentence.replace("{name}", file.name);
    document.dispatchEvent(new CustomEvent("oneref-problem", { detail: line.outerHTML }));
  };
  document.addEventListener("change", (event) => {
    const [file] = event.target === fileInput() ? event.target.files : [];
    const sentence = !file ? null : !file.type.startsWith("image/") ? unreadable : file.size > maxBytes ? tooLarge : null;
    if (!sentence) return;
    event.stopImmediatePropagation();
    event.target.value = "";
    refuse(sentence, file);
  }, true);

  const hand = (event, file) => {
    if (!file || !fileInput()) return;
    event.preventDefault();
    event.stopPropagation();
    const files = new DataTransfer();
    files.items.add(file);
    fileInput().files = files.files;
    fileInput().dispatchEvent(new Event("change", { bubbles: true }));
  };
  document.addEventListener("paste", (event) => {
    hand(event, [...event.clipboardData.files].find(({ type }) => type.startsWith("image/")));
  }, true);
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => hand(event, event.dataTransfer.files[0]), true);

  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.closest("#oneref-phrases")) {
      event.preventDefault();
      document.querySelector("#oneref-find").click();
    }
  });
}
