"use strict";
// Looks for a newer page every few seconds, as long as somebody sees this one, and puts its content
// in place of the old one: the window stays where it was scrolled to.
const PAUSE = 4000; // milliseconds

function scrolled(main) {
  return [...main.querySelectorAll(".wide")].map((box) => [box.getAttribute("aria-label"), box.scrollLeft]);
}

async function look() {
  let said = "";
  try {
    const answer = await fetch(location.pathname, { cache: "no-store", signal: AbortSignal.timeout(15000) });
    const found = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = found.querySelector("main");
    const old = document.querySelector("main");
    if (!fresh) throw new Error("no page");
    if (old.contains(document.activeElement) || String(getSelection())) {
      // A selection, or the place of the keyboard, would be lost: both come first.
      const now = found.querySelector(".now");
      const was = document.querySelector(".now");
      if (now && was) was.replaceWith(document.adoptNode(now));
    } else {
      const places = new Map(scrolled(old));
      old.replaceWith(document.adoptNode(fresh));
      for (const box of document.querySelectorAll(".wide")) {
        box.scrollLeft = places.get(box.getAttribute("aria-label")) || 0;
      }
    }
    document.title = found.title;
  } catch (error) {
    said = "The server of this page does not answer. What you see is from before; it is tried again.";
  }
  let note = document.getElementById("away");
  if (said && !note) {
    note = document.createElement("p");
    note.id = "away";
    note.className = "problem";
    note.setAttribute("role", "alert");
    document.body.prepend(note);
  }
  if (note) said ? (note.textContent = said) : note.remove();
}

async function goOn() {
  if (!document.hidden) await look();
  setTimeout(goOn, PAUSE);
}

setTimeout(goOn, PAUSE);
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
