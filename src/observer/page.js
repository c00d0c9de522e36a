"use strict";
(() => {
  // What the page shows comes as HTML in pieces, by the id of the element that each fills, and is put in place
  // where it differs. Only what the pointer is on in a chart is looked up here.
  const RETRY_MS = 2000;
  const SILENCE_MS = 15000;
  const link = document.getElementById("link");
  const shown = new Map();
  let samples = [];
  let pointer = null;
  let source;
  let heard = Date.now();

  const isBeingSelected = (element) => {
    const selection = getSelection();
    return !selection.isCollapsed && element.contains(selection.anchorNode);
  };

  const number = (value) => value.toLocaleString("en", { maximumSignificantDigits: 3 });

  const inWords = (figure, [age, rate, trouble, service]) => {
    const when = age < 1 ? "now" : `${Math.round(age)} s ago`;
    if (figure.classList.contains("rates")) {
      return `${when}: ${number(rate)} a second${trouble > 0 ? `, ${number(trouble)} failed or expired` : ""}`;
    }
    return service ? `${when}: median ${number(service[0])} ms, 99 % within ${number(service[1])} ms` : `${when}: none`;
  };

  // Tells of the sample below the pointer, on a line across the chart.
  const point = () => {
    const picture = pointer && document.elementFromPoint(pointer.x, pointer.y)?.closest("figure .picture");
    if (!picture || samples.length === 0) return;
    const box = picture.getBoundingClientRect();
    const span = picture.querySelector("svg").viewBox.baseVal.width;
    const age = span * (1 - (pointer.x - box.left) / box.width);
    const nearest = samples.reduce((one, other) => (Math.abs(other[0] - age) < Math.abs(one[0] - age) ? other : one));
    const marker = picture.querySelector(".marker") ?? picture.appendChild(document.createElement("div"));
    marker.className = "marker";
    marker.style.left = `${100 * (1 - nearest[0] / span)}%`;
    marker.textContent = inWords(picture.closest("figure"), nearest);
    marker.classList.toggle("left", nearest[0] < span / 2);
  };

  const unpoint = () => {
    for (const marker of document.querySelectorAll(".marker")) marker.remove();
  };

  const show = ({ title, level, pieces, samples: newer }) => {
    samples = newer;
    document.title = title;
    document.body.className = `${level} live`;
    for (const [id, html] of Object.entries(pieces)) {
      const element = document.getElementById(id);
      if (shown.get(id) !== html && !isBeingSelected(element)) {
        shown.set(id, html);
        element.innerHTML = html;
      }
    }
    point();
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
  document.addEventListener("pointermove", ({ clientX, clientY }) => {
    pointer = { x: clientX, y: clientY };
    unpoint();
    point();
  });
  document.addEventListener("pointerleave", () => {
    pointer = null;
    unpoint();
  });
  connect();
})();
