// What a page cannot do without a script: the viewer's own time zone, countdowns, copying.
// Without it times are shown in UTC, and everything is still there.
"use strict";

document.documentElement.classList.add("has-js");

const moments = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

function local(root) {
  for (const time of root.querySelectorAll("time[datetime]:not([data-local])")) {
    const at = new Date(time.dateTime);
    if (Number.isNaN(at.getTime())) continue;
    time.textContent = moments.format(at);
    time.dataset.local = "";
  }
}

function left(milliseconds) {
  let seconds = Math.floor(milliseconds / 1000);
  const words = [];
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]]) {
    const count = Math.floor(seconds / length);
    seconds -= count * length;
    if (count || words.length) words.push(`${count} ${unit}`);
  }
  return words.slice(0, 2).join(" ") || "0 s";
}

function countdown() {
  for (const element of document.querySelectorAll("[data-until]")) {
    const rest = new Date(element.dataset.until) - Date.now();
    if (rest > 0) {
      element.textContent = left(rest);
    } else if (!element.dataset.over) {
      element.dataset.over = "1";
      location.reload(); // the server says it in words, and offers a new link
    }
  }
}

// what the chosen dataset does not take is neither shown nor sent
function taken() {
  const chosen = document.querySelector("#ask input[name=dataset]:checked");
  if (!chosen) return;
  const takes = chosen.dataset.takes.split(" ");
  for (const part of document.querySelectorAll("#ask [data-taken]")) {
    part.hidden = !part.dataset.taken.split(" ").some((name) => takes.includes(name));
  }
  for (const field of document.querySelectorAll("#ask [data-taken] [name]")) {
    field.disabled = field.closest("[hidden]") !== null;
  }
}

function guess() {
  const zones = document.querySelector("select[data-guess]");
  if (!zones) return;
  const own = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const option = [...zones.options].find((each) => each.text === own);
  if (option) option.selected = true;
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
  } catch {
    const area = document.createElement("textarea"); // no clipboard on plain http
    area.value = button.dataset.copy;
    button.after(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  const said = button.textContent;
  button.textContent = "Copied";
  say("Copied.");
  setTimeout(() => { button.textContent = said; }, 1500);
});

document.addEventListener("change", (event) => {
  if (event.target.name === "dataset") taken();
});

document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !window.confirm(question)) event.preventDefault();
});

function say(sentence) {
  const line = document.getElementById("said");
  if (line) line.textContent = sentence;
}

// a screen reader is told when a job comes on, not at every tick of its bar
const known = new Map();

function statuses(tell) {
  for (const element of document.querySelectorAll("[data-status]")) {
    const before = known.get(element.id);
    known.set(element.id, element.dataset.status);
    if (tell && before && before !== element.dataset.status) {
      say(`${element.dataset.name}: ${element.dataset.status}.`);
    }
  }
}

for (const name of ["htmx:afterSwap", "htmx:oobAfterSwap"]) {
  document.addEventListener(name, () => { local(document); countdown(); statuses(true); });
}

document.querySelector("nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
guess();
local(document);
taken();
countdown();
statuses(false);
setInterval(countdown, 1000);
document.getElementById("errors")?.focus();
