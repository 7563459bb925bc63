// Local times, countdowns, copy buttons and screen reader announcements.
// Every page also works without this script; it then shows times in UTC.
"use strict";

document.documentElement.classList.add("has-js");

const timeFormat = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

function localizeTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]:not([data-local])")) {
    const value = new Date(time.dateTime);
    if (Number.isNaN(value.getTime())) continue;
    time.textContent = timeFormat.format(value);
    time.dataset.local = "";
  }
}

function formatDuration(milliseconds) {
  let seconds = Math.floor(milliseconds / 1000);
  const parts = [];
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]]) {
    const count = Math.floor(seconds / length);
    seconds -= count * length;
    if (count || parts.length) parts.push(`${count} ${unit}`);
  }
  return parts.slice(0, 2).join(" ") || "0 s";
}

function updateCountdowns() {
  for (const element of document.querySelectorAll("[data-expires]")) {
    const remaining = new Date(element.dataset.expires) - Date.now();
    if (remaining > 0) {
      element.textContent = formatDuration(remaining);
    } else if (!element.dataset.expired) {
      element.dataset.expired = "1";
      location.reload(); // the server shows that the link expired and offers a new one
    }
  }
}

// Hides and disables the fields that the selected dataset does not accept.
function toggleDatasetFields() {
  const selected = document.querySelector("#export-form input[name=dataset]:checked");
  if (!selected) return;
  const accepted = selected.dataset.accepts.split(" ");
  for (const part of document.querySelectorAll("#export-form [data-fields]")) {
    part.hidden = !part.dataset.fields.split(" ").some((name) => accepted.includes(name));
  }
  for (const field of document.querySelectorAll("#export-form [data-fields] [name]")) {
    field.disabled = field.closest("[hidden]") !== null;
  }
}

function selectLocalZone() {
  const zones = document.querySelector("select[data-detect-zone]");
  if (!zones) return;
  const local = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const option = [...zones.options].find((each) => each.text === local);
  if (option) option.selected = true;
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
  } catch {
    const area = document.createElement("textarea"); // plain http has no clipboard
    area.value = button.dataset.copy;
    button.after(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  const label = button.textContent;
  button.textContent = "Copied";
  announce("Copied.");
  setTimeout(() => { button.textContent = label; }, 1500);
});

document.addEventListener("change", (event) => {
  if (event.target.name === "dataset") toggleDatasetFields();
});

document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !window.confirm(question)) event.preventDefault();
});

function announce(sentence) {
  const line = document.getElementById("live-status");
  if (line) line.textContent = sentence;
}

// A screen reader hears a change of status, not every step of a progress bar.
const lastStatus = new Map();

function updateStatuses(isAnnounced) {
  for (const element of document.querySelectorAll("[data-status]")) {
    const before = lastStatus.get(element.id);
    lastStatus.set(element.id, element.dataset.status);
    if (isAnnounced && before && before !== element.dataset.status) {
      announce(`${element.dataset.name}: ${element.dataset.status}.`);
    }
  }
}

for (const name of ["htmx:afterSwap", "htmx:oobAfterSwap"]) {
  document.addEventListener(name, () => { localizeTimes(document); updateCountdowns(); updateStatuses(true); });
}

document.querySelector("nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
selectLocalZone();
localizeTimes(document);
toggleDatasetFields();
updateCountdowns();
updateStatuses(false);
setInterval(updateCountdowns, 1000);
document.getElementById("errors")?.focus();
