"use strict";
(() => {
  // What the page shows comes as HTML in pieces, by the id of the element that each fills. It is put in place
  // where it differs; nothing is computed here.
  const RETRY_MS = 2000;
  const SILENCE_MS = 5000;
  const link = document.getElementById("link");
  const shown = new Map();
  let source;
  let heard = Date.now();

  const isBeingSelected = (element) => {
    const selection = getSelection();
    return !selection.isCollapsed && element.contains(selection.anchorNode);
  };

  const show = ({ title, level, pieces }) => {
    document.title = title;
    document.body.className = `${level} live`;
    for (const [id, html] of Object.entries(pieces)) {
      const element = document.getElementById(id);
      if (shown.get(id) !== html && !isBeingSelected(element)) {
        shown.set(id, html);
        element.innerHTML = html;
      }
    }
  };

  const tell = (text) => {
    if (link.textContent !== text) link.textContent = text;
  };

  const lose = () => {
    if (document.body.classList.contains("stale")) return;
    document.body.classList.remove("live");
    document.body.classList.add("stale");
    tell(`connection lost since ${new Date(heard).toLocaleTimeString()}, trying again`);
  };

  const connect = () => {
    source = new EventSource("events");
    source.addEventListener("status", (event) => {
      heard = Date.now();
      show(JSON.parse(event.data));
      tell("live");
    });
    source.onerror = () => {
      lose();
      // A server that said no is not asked again by the browser.
      if (source.readyState === EventSource.CLOSED) setTimeout(connect, RETRY_MS);
    };
  };

  // A connection may be open, and dead.
  setInterval(() => {
    if (Date.now() - heard > SILENCE_MS && !document.hidden) {
      lose();
      if (source.readyState === EventSource.OPEN) {
        source.close();
        connect();
      }
    }
  }, 1000);
  connect();
})();
