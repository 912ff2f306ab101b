"use strict";
const live = document.getElementById("live");
const shown = new Map();
const say = (text, kind) => { live.textContent = text; live.className = "quiet " + kind; };
// What the pointer or the arrow keys read of a plot: which one, and the point counted from the right.
let read = null;
const plots = () => [...document.querySelectorAll("figure")];
const point = () => {
  if (!read) return;
  const figure = plots()[read.plot];
  const said = figure.dataset.said.split("|");
  const back = Math.max(0, Math.min(read.back, said.length - 1));
  const seconds = back * figure.dataset.step;
  const ago = !seconds ? "now" : seconds < 120 ? seconds + " s ago"
    : seconds < 7200 ? Math.round(seconds / 60) + " min ago" : (seconds / 3600).toFixed(1) + " h ago";
  figure.querySelector("output").textContent = said[said.length - 1 - back] + ", " + ago;
  const box = figure.querySelector("svg").viewBox.baseVal;
  const x = box.width * (1 - back / (figure.dataset.points - 1));
  figure.querySelector(".cursor").setAttribute("d", `M${x} 0V${box.height}`);
};
document.addEventListener("pointermove", (event) => {
  const figure = event.target.closest && event.target.closest("figure");
  const before = read;
  read = null;
  if (figure) {
    const box = figure.querySelector("svg").getBoundingClientRect();
    const share = (box.right - event.clientX) / box.width;
    read = { plot: plots().indexOf(figure), back: Math.round(share * (figure.dataset.points - 1)) };
  }
  if (before && (!read || before.plot !== read.plot)) {
    plots()[before.plot].querySelector(".cursor").setAttribute("d", "");
  }
  point();
});
document.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: 1, ArrowRight: -1 }[event.key];
  const figure = document.activeElement.closest("figure");
  if (!step || !figure) return;
  const plot = plots().indexOf(figure);
  read = { plot, back: Math.max(0, (read && read.plot === plot ? read.back : -step) + step) };
  event.preventDefault();
  point();
});
const follow = () => {
  const events = new EventSource("/_tcprepl/v1/events");
  events.onmessage = show;
  events.onerror = () => say("connection lost, trying again", "off");
};
const show = (event) => {
  say("live", "on");
  const focused = plots().indexOf(document.activeElement);
  for (const [id, html] of Object.entries(JSON.parse(event.data))) {
    if (shown.get(id) === html) continue;
    shown.set(id, html);
    document.getElementById(id).innerHTML = html;
  }
  if (focused >= 0) plots()[focused].focus();
  point();
};
// A page that is not live is fetched again, as long as nobody types or selects on it.
const busy = () => document.activeElement.closest("form") || String(document.getSelection());
const again = async () => {
  try {
    const answer = !busy() && !document.hidden && (await fetch(location));
    const page = answer && new DOMParser().parseFromString(await answer.text(), "text/html");
    if (page && page.querySelector("main") && !busy()) {
      const link = document.activeElement.getAttribute("href");
      for (const place of ["header", "main"]) {
        document.querySelector(place).innerHTML = page.querySelector(place).innerHTML;
      }
      const same = link && document.querySelector(`a[href="${CSS.escape(link)}"]`);
      if (same) same.focus();
    }
  } catch { /* nobody answers: what was last said stays */ }
  setTimeout(again, 10000);
};
if (live) follow();
else setTimeout(again, 10000);
