"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const get = (id) => document.getElementById(id);

// Values on hovering, on keyboard focus, and near a mark of the figure.
const tip = get("tip");
function showTip(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 12, innerWidth - width - 4))}px`;
  tip.style.top = `${y + height + 20 > innerHeight ? y - height - 12 : y + 16}px`;
}
const hideTip = () => (tip.hidden = true);
for (const cell of all(".cell")) {
  cell.addEventListener("pointermove", (event) => showTip(cell.dataset.tip, event.clientX, event.clientY));
  cell.addEventListener("focus", () => {
    const box = cell.getBoundingClientRect();
    if (cell.matches(":focus-visible")) showTip(cell.dataset.tip, box.left, box.bottom);
  });
  cell.addEventListener("pointerleave", hideTip);
  cell.addEventListener("blur", hideTip);
  cell.addEventListener("click", () => open(cell.dataset.key));
}
addEventListener("scroll", hideTip, true);

// A click on the head of a column sorts its table; cells without a figure come last.
for (const button of all(".sort")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), body = head.closest("table").tBodies[0], place = head.cellIndex;
    const sign = head.ariaSort === "ascending" ? -1 : 1;
    const text = (row) => row.cells[place].dataset.value ?? row.cells[place].textContent;
    const order = (a, b) => (a === "") - (b === "") || sign * (place ? a - b : a.localeCompare(b));
    body.append(...[...body.rows].sort((a, b) => order(text(a), text(b))));
    for (const other of head.parentNode.cells) other.ariaSort = null;
    head.ariaSort = sign > 0 ? "ascending" : "descending";
  });
}

// The figure: the value of the nearest mark; a name hides its row. Identifiers are those of tables/figure.py.
const chart = document.querySelector(".chart svg");
if (chart) {
  const parts = chart.parentNode.dataset.parts.split(" "), points = [], rows = new Map(), labels = [];
  for (const element of all("[id]", chart)) {
    const [, part, kind, row, column] = /^(?:part-(\d+)-)?(row|point|label)-(\d+)(?:-(.+))?$/.exec(element.id) ?? [];
    if (kind === "label") labels.push([element, row]);
    else if (kind) rows.set(row, [...(rows.get(row) ?? []), element]);
    if (kind === "point") points.push([element, get(`cell-${parts[part ?? 0]}-${row}-${column}`)]);
  }
  const show = (event) => {
    let nearest = null, least = 24;
    for (const [mark, cell] of points) {
      const box = mark.getBoundingClientRect();
      const distance = Math.hypot(event.clientX - box.x - box.width / 2, event.clientY - box.y - box.height / 2);
      if (box.width && distance < least) [nearest, least] = [cell, distance];
    }
    if (nearest) showTip(nearest.dataset.tip, event.clientX, event.clientY);
    else hideTip();
  };
  for (const kind of ["pointermove", "pointerdown"]) chart.addEventListener(kind, show);
  chart.addEventListener("pointerleave", hideTip);
  for (const [label, row] of labels) {
    const toggle = () => {
      const off = label.classList.toggle("pale");
      label.setAttribute("aria-pressed", off);
      for (const element of rows.get(row) ?? []) element.classList.toggle("off", off);
    };
    for (const [name, value] of [["tabindex", 0], ["role", "button"], ["aria-pressed", false]])
      label.setAttribute(name, value);
    label.addEventListener("click", toggle);
    label.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      toggle();
    });
  }
}

// The viewer: a cell with its picture and its runs; `other` is the cell that a flip shows in its place.
const viewer = get("viewer"), large = get("large");
const photos = new Map(all(".photo").map((button) => [button.dataset.key, button]));
let shown = null, other = null;
function show(key) {
  shown = key;
  const cell = get(`cell-${key}`), photo = photos.get(key), run = get(`run-${key}`);
  get("viewer-title").textContent = photo ? photo.dataset.title : cell.dataset.tip.split("\n")[0];
  get("viewer-tip").textContent = cell ? cell.dataset.tip.split("\n").slice(1).join("\n") : "";
  get("viewer-detail").replaceChildren(...(run ? [run.querySelector(".detail").cloneNode(true)] : []));
  get("stage").hidden = !photo;
  if (!photo) return;
  const image = photo.querySelector("img");
  [large.src, large.alt, large.className] = [image.src, image.alt, image.className];
  get("flip").disabled = !other;
  get("other").textContent = other ? `to ${photos.get(other).dataset.title}` : "";
}
// The fine run, else the last picture of the row, else any other one.
function counterpart(key) {
  const keys = [...photos.keys()].filter((one) => one !== key), row = key.replace(/\d+$/, "");
  return keys.find((one) => one === "fine") ?? keys.findLast((one) => one.startsWith(row)) ?? keys[0] ?? null;
}
function open(key, second = null) {
  other = second ?? counterpart(key);
  show(key);
  hideTip();
  viewer.showModal();
  (photos.has(key) ? get("flip") : get("close")).focus();
}
function flip() {
  if (!other || !photos.has(shown)) return;
  const former = shown;
  [shown, other] = [other, former];
  show(shown);
}
function step(rows, columns) {
  const [part, row, column] = shown.split("-").map(Number);
  const keys = [...photos.keys()].filter((key) => key.startsWith(`${part}-`)).map((key) => key.split("-").map(Number));
  const line = keys.filter((key) => (rows ? key[2] === column : key[1] === row));
  const ahead = line.filter((key) => (rows ? (key[1] - row) * rows : (key[2] - column) * columns) > 0);
  ahead.sort((a, b) => Math.abs(a[1] - row) + Math.abs(a[2] - column) - Math.abs(b[1] - row) - Math.abs(b[2] - column));
  if (!ahead.length) return;
  other = shown;
  show(ahead[0].join("-"));
}
const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
viewer.addEventListener("keydown", (event) => {
  if (event.key === " " && !event.target.matches("button, summary")) flip();
  else if (event.key in steps && photos.has(shown) && shown !== "fine") step(...steps[event.key]);
  else return;
  event.preventDefault();
});
get("flip").addEventListener("click", flip);
large.addEventListener("click", flip);
viewer.addEventListener("click", (event) => event.target === viewer && viewer.close());
for (const [key, photo] of photos) photo.addEventListener("click", () => open(key));
for (const box of all(".chosen")) {
  box.addEventListener("change", () => {
    const chosen = all(".chosen:checked");
    if (chosen.length < 2) return;
    const [one, two] = chosen.map((it) => it.value);
    for (const it of chosen) it.checked = false;
    open(box.value === one ? two : one, box.value);
  });
}
