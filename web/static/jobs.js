// Rebuilds move on the page as they do on the server.

import { fragment } from "./page.js";

const STATES = {
  planned: "Planned", fetching: "Fetching", running: "Embedding", merging: "Building the index",
  published: "Published", failed: "Failed", cancelled: "Cancelled",
};
const WINDOW_S = 15; // the rate is that of the last seconds
const STALLED_S = 6; // then the page says what is waited for
const STREAMS = 2; // browsers open six connections to a host, and these stay open

const number = (value) => value.toLocaleString("en-US", { maximumFractionDigits: 1 });

function duration(seconds) {
  if (seconds < 10 && !Number.isInteger(seconds)) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

function follow(root) {
  const id = encodeURIComponent(root.dataset.job);
  const parts = new Map();
  for (const each of root.querySelectorAll("[data-part]")) parts.set(each.dataset.part, each);
  const set = (name, text) => {
    const element = parts.get(name);
    if (element && element.textContent !== text) element.textContent = text;
  };
  const samples = [];
  let movedAt = performance.now();
  let clock = null; // seconds of the job at a time of this page
  let askedAt = 0;

  function show(job) {
    const now = performance.now() / 1000;
    const last = samples.at(-1);
    if (!last || last.images !== job.looked_at) movedAt = performance.now();
    samples.push({ at: now, images: job.looked_at });
    while (samples.length > 2 && now - samples[0].at > WINDOW_S) samples.shift();
    set("state", STATES[job.stage ?? job.state] ?? job.state);
    parts.get("state").className = `state ${job.state}`;
    const ended = !["planned", "running"].includes(job.state);
    set("images", ended ? number(job.images) : `${number(job.looked_at)} of ${number(job.images)}`);
    for (const name of ["embedded", "reused", "skipped", "warnings"]) {
      set(name, number(job[name]));
    }
    set("index_version", job.index_version ?? "–");
    clock = { at: now, seconds: job.seconds };
    const bar = parts.get("bar");
    if (bar && job.state !== "planned") {
      bar.max = job.images || 1;
      bar.value = job.state === "running" ? job.looked_at : job.images;
    }
    const seconds = now - samples[0].at;
    const rate = seconds > 0 ? (job.looked_at - samples[0].images) / seconds : 0;
    const open = job.state === "running" && rate > 0;
    set("rate", open ? `${number(rate)}/s` : "–");
    set("left", open ? `about ${duration(Math.ceil((job.images - job.looked_at) / rate) || 1)}` : "–");
    if (parts.has("waiting") && !job.error && performance.now() - movedAt < 1000 * STALLED_S) {
      parts.get("waiting").replaceChildren();
    }
  }

  async function explain() {
    const stalled = performance.now() - movedAt > 1000 * STALLED_S;
    if (!stalled || !parts.has("waiting") || performance.now() - askedAt < 1000 * STALLED_S) return;
    askedAt = performance.now();
    const html = await fragment(`/jobs/${id}/waiting`).catch(() => null);
    if (html !== null && root.isConnected) parts.get("waiting").innerHTML = html;
  }

  const tick = setInterval(() => {
    if (clock) set("seconds", duration(clock.seconds + performance.now() / 1000 - clock.at));
    explain();
  }, 1000);

  const source = new EventSource(`/v1/jobs/${id}/events`);
  source.addEventListener("progress", (event) => show(JSON.parse(event.data)));
  source.addEventListener("end", async (event) => {
    source.close();
    clearInterval(tick);
    const job = JSON.parse(event.data);
    show(job);
    set("seconds", duration(job.seconds));
    parts.get("bar")?.remove();
    if (root.dataset.page !== undefined) await showEnd(root);
    root.removeAttribute("data-job");
  });
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) {
      clearInterval(tick);
      set("rate", "no longer live: reload the page");
    }
  });
}

/** Put the ended job in place of the running one: its failures, its buttons. */
async function showEnd(root) {
  const response = await fetch(location.href).catch(() => null);
  if (!response?.ok) return;
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  const ended = page.getElementById("job");
  if (ended) root.replaceWith(ended);
  document.getElementById("cancel")?.close();
}

[...document.querySelectorAll("[data-job]")].slice(0, STREAMS).forEach(follow);
