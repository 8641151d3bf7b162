// Keys, and nothing that the page needs: without this script every button and link works all the same.
"use strict";

const KEYS_OFF = "ilis_guard.keys-off";
const dialog = document.getElementById("keys");
const toggle = document.getElementById("keys-on");

function keysAreOn() {
  return localStorage.getItem(KEYS_OFF) === null;
}

function isWriting(element) {
  return element instanceof HTMLElement && element.matches("input:not([type=checkbox]), textarea, select");
}

// Buttons that end a ticket are only focused: it takes Enter, too, to press them.
function use(element) {
  if (element.closest("#verdict")) {
    element.focus();
    element.scrollIntoView({ block: "nearest" });
  } else {
    element.click();
  }
}

function step(by) {
  const tickets = [...document.querySelectorAll(".ticket")];
  const at = tickets.indexOf(document.activeElement);
  const next = tickets[at < 0 ? (by > 0 ? 0 : tickets.length - 1) : at + by];
  if (next) next.focus();
}

document.addEventListener("keydown", (event) => {
  const target = event.target;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && target instanceof HTMLTextAreaElement) {
    const submit = document.getElementById(target.dataset.submit ?? "");
    if (submit) {
      event.preventDefault();
      submit.click();
    }
    return;
  }
  if (isWriting(target)) {
    if (event.key === "Escape") target.blur();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || dialog?.open || !keysAreOn()) return;
  if (event.key === "j" || event.key === "k") {
    step(event.key === "j" ? 1 : -1);
    event.preventDefault();
    return;
  }
  const element = document.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
  if (element) {
    event.preventDefault();
    use(element);
  }
});

if (dialog) {
  document.getElementById("show-keys").addEventListener("click", () => dialog.showModal());
  toggle.checked = keysAreOn();
  toggle.addEventListener("change", () => {
    if (toggle.checked) localStorage.removeItem(KEYS_OFF);
    else localStorage.setItem(KEYS_OFF, "yes");
  });
}
