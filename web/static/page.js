// What every page needs: requests with the token, dialogs, parts that load later, missing images.

const token = document.querySelector("meta[name=csrf-token]").content;

/** Send a request as this page; where the key is no longer valid, ask for one. */
export async function request(address, options = {}) {
  const headers = { "X-CSRF-Token": token, ...options.headers };
  const response = await fetch(address, { ...options, headers });
  if (response.status === 401) {
    location.assign(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
    return new Promise(() => {}); // the page is being left
  }
  return response;
}

/** Fetch a part of a page; an error is such a part, too. */
export async function fragment(address, options = {}) {
  const response = await request(address, {
    ...options,
    headers: { "X-Fragment": "1", ...options.headers },
  });
  if (response.headers.get("Content-Type")?.startsWith("text/html")) return response.text();
  const problem = await response.json().catch(() => ({}));
  return notice(problem.detail || `The server answered with status ${response.status}.`);
}

/** Return an error as a part of a page. */
export function notice(sentence) {
  const element = document.createElement("div");
  element.className = "notice bad";
  element.setAttribute("role", "alert");
  element.append(document.createElement("p"));
  element.firstChild.textContent = sentence;
  return element.outerHTML;
}

/** Say something to screen readers. */
export function say(sentence) {
  const live = document.getElementById("live");
  if (live) live.textContent = sentence;
}

function showMissing(image) {
  if (image.parentElement?.matches(".tile, .thumb")) image.parentElement.classList.add("no-image");
}

export function markMissing(root) {
  for (const image of root.querySelectorAll(".tile img, .thumb img")) {
    if (image.complete && !image.naturalWidth && image.currentSrc) showMissing(image);
  }
}

document.addEventListener("error", (event) => {
  if (event.target instanceof HTMLImageElement) showMissing(event.target);
}, true);
markMissing(document);

document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-dialog]");
  if (opener) document.getElementById(opener.dataset.dialog).showModal();
  const closer = event.target.closest("[data-close]");
  if (closer) closer.closest("dialog").close();
});

for (const place of document.querySelectorAll("[data-load]")) {
  const target = place.tagName === "DETAILS" ? place.querySelector(":scope > div") : place;
  const load = async () => {
    try {
      target.innerHTML = await fragment(place.dataset.load);
    } catch {
      target.innerHTML = notice("The server does not answer.");
    }
  };
  // Nothing is awaited here: one part that takes long must not hold up the others.
  if (place.tagName === "DETAILS") {
    place.addEventListener("toggle", () => place.open && load());
    if (place.open) load(); // opened before this script ran
  } else {
    load();
    if (place.dataset.every) {
      setInterval(() => document.hidden || load(), 1000 * Number(place.dataset.every));
    }
  }
}
