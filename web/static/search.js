// The search: an image that is dropped, pasted, chosen or photographed; a box on it; likes.

import { fragment, markMissing, request, say } from "./page.js";

const form = document.getElementById("search");
const results = document.getElementById("results");
const part = (name) => document.getElementById(name);
const maxBody = Number(form.dataset.maxBody);

let image = null; // the file that is searched for
let box = null; // {x, y, w, h}, each 0 to 1 of the upright image
let running = null;

// On a phone the matches come first; what is filtered by stands above them.
if (results.querySelector(".cards") && matchMedia("(max-width: 56rem)").matches) {
  form.querySelector("details.filters").open = false;
}

// -- the image -------------------------------------------------------------------------------------

function choose(file) {
  const error = part("image-error");
  error.hidden = true;
  if (!file) return;
  if (file.size > maxBody) {
    error.textContent = `The image has ${(file.size / 2 ** 20).toFixed(1)} MiB, more than the `
      + `${(maxBody / 2 ** 20).toFixed(0)} MiB of WEB_MAX_BODY.`;
    error.hidden = false;
    return;
  }
  image = file;
  const preview = part("preview");
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.alt = `Your image: ${file.name}`;
  part("drop").hidden = true;
  part("chosen").hidden = false;
  part("like-chip")?.remove();
  setBox(null);
  search();
}

function forget() {
  image = null;
  setBox(null);
  URL.revokeObjectURL(part("preview").src);
  part("preview").removeAttribute("src");
  part("chosen").hidden = true;
  part("drop").hidden = false;
  for (const input of [part("image"), part("camera")]) input.value = "";
  part("image").focus();
}

for (const input of [part("image"), part("camera")]) {
  input.addEventListener("change", () => choose(input.files[0]));
}
part("photograph").addEventListener("click", () => part("camera").click());
part("remove-image").addEventListener("click", forget);
part("preview").addEventListener("error", () => {
  part("preview").dataset.broken = "";
  part("add-box").hidden = true;
});
part("preview").addEventListener("load", () => {
  delete part("preview").dataset.broken;
  part("add-box").hidden = false;
});

document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
  if (file) {
    event.preventDefault();
    choose(file);
  }
});
document.addEventListener("dragover", (event) => {
  if (![...event.dataTransfer.types].includes("Files")) return;
  event.preventDefault();
  document.body.classList.add("dragging");
});
for (const kind of ["dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    if (kind === "drop" || !event.relatedTarget) document.body.classList.remove("dragging");
  });
}
document.addEventListener("drop", (event) => {
  if (!event.dataTransfer.files.length) return;
  event.preventDefault();
  choose(event.dataTransfer.files[0]);
});

// -- the box ---------------------------------------------------------------------------------------

const MIN = 0.02;
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

function setBox(value) {
  box = value;
  const element = part("box");
  element.hidden = !box;
  part("remove-box").hidden = !box;
  part("add-box").textContent = box ? "Adjust" : "Draw a box";
  part("box-hint").textContent = box
    ? "Drag the box to move it, or draw another. Arrow keys move it, with Shift they resize it."
    : "Drag over the image to search for a part of it.";
  if (!box) return;
  const percent = (share) => `${(100 * share).toFixed(2)}%`;
  Object.assign(element.style, {
    left: percent(box.x), top: percent(box.y), width: percent(box.w), height: percent(box.h),
  });
  const [x, y, w, h] = [box.x, box.y, box.w, box.h].map((share) => Math.round(100 * share));
  element.setAttribute(
    "aria-label",
    `Box from the left ${x} %, from the top ${y} %, width ${w} %, height ${h} %. Arrow keys move `
      + "it, with Shift they resize it; Delete removes it.",
  );
}

const frame = part("frame");

frame.addEventListener("pointerdown", (event) => {
  if (event.button || part("preview").dataset.broken !== undefined) return;
  const area = frame.getBoundingClientRect();
  const place = (move) => ({
    x: clamp((move.clientX - area.left) / area.width, 0, 1),
    y: clamp((move.clientY - area.top) / area.height, 0, 1),
  });
  const start = place(event);
  const before = box;
  const moves = before && event.target === part("box");
  event.preventDefault();
  frame.setPointerCapture(event.pointerId);
  let moved = false;

  const move = (next) => {
    const now = place(next);
    if (moves) {
      setBox({
        ...before,
        x: clamp(before.x + now.x - start.x, 0, 1 - before.w),
        y: clamp(before.y + now.y - start.y, 0, 1 - before.h),
      });
      moved = true;
      return;
    }
    const [w, h] = [Math.abs(now.x - start.x), Math.abs(now.y - start.y)];
    if (w < MIN || h < MIN) return;
    moved = true;
    setBox({ x: Math.min(now.x, start.x), y: Math.min(now.y, start.y), w, h });
  };
  const end = (last) => {
    frame.removeEventListener("pointermove", move);
    frame.removeEventListener("pointerup", end);
    frame.removeEventListener("pointercancel", end);
    if (last.type === "pointercancel") setBox(before);
    else if (moved) search();
  };
  frame.addEventListener("pointermove", move);
  frame.addEventListener("pointerup", end);
  frame.addEventListener("pointercancel", end);
});

part("add-box").addEventListener("click", () => {
  if (!box) setBox({ x: 0.2, y: 0.2, w: 0.6, h: 0.6 });
  part("box").focus();
});
part("remove-box").addEventListener("click", () => {
  setBox(null);
  part("add-box").focus();
  search();
});
part("box").addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (event.key === "Delete" || event.key === "Backspace") {
    event.preventDefault();
    part("remove-box").click();
  } else if (event.key === "Enter") {
    event.preventDefault();
    search();
  } else if (steps[event.key]) {
    event.preventDefault();
    const [dx, dy] = steps[event.key].map((step) => MIN * step);
    if (event.shiftKey) {
      setBox({ ...box, w: clamp(box.w + dx, MIN, 1 - box.x), h: clamp(box.h + dy, MIN, 1 - box.y) });
    } else {
      setBox({ ...box, x: clamp(box.x + dx, 0, 1 - box.w), y: clamp(box.y + dy, 0, 1 - box.h) });
    }
  }
});

// -- the search ------------------------------------------------------------------------------------

/** Return the filled fields of the form, without files. */
function filled() {
  return [...new FormData(form)].filter(([, value]) => typeof value === "string" && value !== "");
}

/** Search with the image; without one, the form opens its address itself. */
async function search(page = {}, focus = false) {
  if (!image) return;
  running?.abort();
  const mine = running = new AbortController();
  const pairs = filled();
  history.replaceState(null, "", pairs.length ? `/?${new URLSearchParams(pairs)}` : "/");
  const data = new FormData();
  for (const [name, value] of [...pairs, ...Object.entries(page)]) data.append(name, value);
  if (box) data.append("box", [box.x, box.y, box.w, box.h].map((n) => n.toFixed(5)).join(","));
  data.append("image", image, image.name || "photo");
  results.setAttribute("aria-busy", "true");
  say("Searching");
  try {
    const html = await fragment("/results", { method: "POST", body: data, signal: mine.signal });
    if (mine !== running) return;
    results.innerHTML = html;
  } catch (error) {
    if (error.name === "AbortError" || mine !== running) return;
    results.innerHTML = "<div class=\"notice bad\" role=\"alert\"><h2>The search did not work</h2>"
      + "<p>The server does not answer. Try again in a moment.</p></div>";
  }
  results.removeAttribute("aria-busy");
  markMissing(results);
  say(results.querySelector("[data-summary]")?.textContent ?? "");
  if (focus) {
    results.focus({ preventScroll: true });
    results.scrollIntoView({ block: "start" });
  }
}

form.addEventListener("submit", (event) => {
  if (image) {
    event.preventDefault();
    search();
    return;
  }
  // An address without the fields that are empty is one to share.
  for (const field of form.elements) if (field.name && field.value === "") field.disabled = true;
  results.setAttribute("aria-busy", "true");
});
addEventListener("pageshow", () => {
  for (const field of form.elements) field.disabled = false;
  results.removeAttribute("aria-busy");
});

results.addEventListener("click", (event) => {
  const page = event.target.closest("a[data-offset]");
  const filter = event.target.closest("a[data-filter]");
  if (image && page) {
    event.preventDefault();
    search({ offset: page.dataset.offset, version: page.dataset.version ?? "" }, true);
  } else if (image && filter) {
    event.preventDefault();
    for (const field of form.elements) {
      const filters = /^(f|min|max)\./.test(field.name);
      if (filters && (!filter.dataset.filter || field.name === filter.dataset.filter)) field.value = "";
    }
    search({}, true);
  }
});

// -- likes -----------------------------------------------------------------------------------------

results.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-action]");
  if (!button) return;
  const card = button.closest("[data-product]");
  const votes = card.querySelectorAll("button[data-action]");
  for (const each of votes) each.disabled = true;
  const response = await request("/v1/feedback", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({
      query_id: card.closest("[data-query]").dataset.query,
      product_id: card.dataset.product,
      action: button.dataset.action,
      user: form.dataset.user,
    }),
  }).catch(() => null);
  for (const each of votes) each.disabled = false;
  card.querySelector(".vote-error")?.remove();
  if (response?.ok) {
    for (const each of votes) each.setAttribute("aria-pressed", String(each === button));
    say(button.dataset.action === "like" ? "Liked" : "Disliked");
  } else {
    const problem = await response?.json().catch(() => null);
    const error = document.createElement("p");
    error.className = "field-error vote-error";
    error.setAttribute("role", "alert");
    error.textContent = problem?.detail ?? "The server does not answer.";
    card.querySelector(".words").prepend(error);
  }
  button.focus();
});
