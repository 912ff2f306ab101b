"use strict";
const live = document.getElementById("live");
const shown = new Map();
const say = (text, kind) => { live.textContent = text; live.className = "quiet " + kind; };
const events = new EventSource("/_tcprepl/v1/events");
events.onmessage = (event) => {
  say("live", "on");
  for (const [id, html] of Object.entries(JSON.parse(event.data))) {
    if (shown.get(id) === html) continue;
    shown.set(id, html);
    document.getElementById(id).innerHTML = html;
  }
};
events.onerror = () => say("connection lost, trying again", "off");
