// Copies an example, and opens the examples of the language that you opened last.
"use strict";

document.documentElement.classList.add("has-js");
const status = document.getElementById("live-status");

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy-example]");
  if (!button) return;
  const example = button.parentElement.querySelector("pre");
  try {
    await navigator.clipboard.writeText(example.textContent);
  } catch {
    getSelection().selectAllChildren(example); // plain http has no clipboard
    document.execCommand("copy");
  }
  status.textContent = "Copied.";
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
});

document.addEventListener("click", (event) => {
  const opened = event.target.closest("[data-language] > summary")?.parentElement;
  if (!opened || opened.open) return;
  for (const each of document.querySelectorAll("[data-language]")) {
    each.open = each.dataset.language === opened.dataset.language && each !== opened;
  }
});
