// Local times, countdowns, copy buttons and screen reader announcements.
// Every page also works without this script; it then shows times in UTC.
"use strict";

document.documentElement.classList.add("has-js");

const page = document.documentElement;
// a page in English leaves the order of day and month to the browser; digits are those of the server
const numberLanguage = `${page.lang}-u-nu-latn`;
const language = page.lang.startsWith("en") ? undefined : numberLanguage;

// In the zone of the user's profile, else of the browser.
function makeTimeFormat(timeStyle) {
  const options = { dateStyle: "medium", timeStyle };
  try {
    return new Intl.DateTimeFormat(language, { ...options, timeZone: page.dataset.zone });
  } catch {
    return new Intl.DateTimeFormat(language, options); // the browser does not know the zone
  }
}

const timeFormat = makeTimeFormat("short");
const secondsFormat = makeTimeFormat("medium");
const exactTimeFormat = makeTimeFormat("long"); // with seconds and zone
const relativeFormat = new Intl.RelativeTimeFormat(numberLanguage);
const RELATIVE_UNITS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];

function localizeTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]:not([data-local])")) {
    const value = new Date(time.dateTime);
    if (Number.isNaN(value.getTime())) continue;
    if ("relative" in time.dataset) time.title = exactTimeFormat.format(value);
    else time.textContent = ("seconds" in time.dataset ? secondsFormat : timeFormat).format(value);
    time.dataset.local = "";
  }
  updateRelativeTimes();
}

function updateRelativeTimes() {
  for (const time of document.querySelectorAll("time[data-relative]")) {
    const seconds = Math.trunc((new Date(time.dateTime) - Date.now()) / 1000);
    if (Number.isNaN(seconds) || Math.abs(seconds) > 30 * 86400) continue;
    const [unit, length] = RELATIVE_UNITS.find(([, each]) => Math.abs(seconds) >= each) ?? ["second", 1];
    time.textContent = relativeFormat.format(Math.trunc(seconds / length), unit);
  }
}

// English units are short; other languages have Intl's.
function formatUnit(count, name, unit) {
  if (!language) return `${count} ${name}`;
  return new Intl.NumberFormat(language, { style: "unit", unit, unitDisplay: "narrow" }).format(count);
}

// The two largest units, without a second one of 0.
function formatDuration(milliseconds) {
  let seconds = Math.floor(milliseconds / 1000);
  const parts = [];
  for (const [name, unit, length] of [["d", "day", 86400], ["h", "hour", 3600], ["min", "minute", 60], ["s", "second", 1]]) {
    const count = Math.floor(seconds / length);
    seconds -= count * length;
    if (count || parts.length) parts.push(count ? formatUnit(count, name, unit) : "");
  }
  return parts.slice(0, 2).filter(Boolean).join(" ") || formatUnit(0, "s", "second");
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
  if (!option || option.selected) return;
  option.selected = true;
  // the days of the presets depend on it; htmx listens once the page is ready
  document.addEventListener("DOMContentLoaded", () => zones.dispatchEvent(new Event("change", { bubbles: true })));
}

// Makes a password of 100 random bits, without letters that look alike.
function makePassword() {
  const letters = "abcdefghijkmnpqrstuvwxyz23456789"; // 32
  const random = crypto.getRandomValues(new Uint8Array(20));
  return [...random].map((byte, n) => (n && n % 5 === 0 ? "-" : "") + letters[byte % 32]).join("");
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-make-password]");
  if (!button) return;
  const field = document.getElementById(button.dataset.makePassword);
  field.type = "text";
  field.value = makePassword();
  const choice = document.querySelector("input[name=encryption][value=password]");
  if (choice) choice.checked = true;
  field.focus();
});

// A sign-in in another tab changes the token that the forms of this page send.
function renewTokens() {
  const token = document.cookie.match(/(?:^|; )(?:__Host-csrf|csrftoken)=([^;]+)/)?.[1];
  if (!token) return;
  for (const field of document.querySelectorAll("[name=csrfmiddlewaretoken]")) field.value = token;
}

document.addEventListener("submit", renewTokens, true);
document.addEventListener("htmx:configRequest", (event) => {
  renewTokens();
  const field = document.querySelector("[name=csrfmiddlewaretoken]");
  if ("csrfmiddlewaretoken" in event.detail.parameters) event.detail.parameters.csrfmiddlewaretoken = field.value;
});

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const from = document.getElementById(button.dataset.copyFrom);
  const text = from ? from.value : button.dataset.copy;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea"); // plain http has no clipboard
    area.value = text;
    button.after(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  const label = button.innerHTML;
  button.textContent = page.dataset.copied;
  announce(`${page.dataset.copied}.`);
  setTimeout(() => { button.innerHTML = label; }, 1500);
});

document.addEventListener("change", (event) => {
  if (event.target.name === "dataset") toggleDatasetFields();
  const all = event.target.dataset.checkAll;
  if (all) for (const box of event.target.form.querySelectorAll(`input[name=${all}]`)) box.checked = event.target.checked;
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
setInterval(updateRelativeTimes, 10_000);
document.getElementById("errors")?.focus();
