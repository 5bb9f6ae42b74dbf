"use strict";
// Follows the script of a picture: holds what is drawn against what the page says of each cell, and writes what it
// found to attributes of the document's root.
{
  const root = document.documentElement.dataset;
  root.loaded = Math.round(performance.now());
  const timed = work => {
    const times = [1, 2, 3, 4, 5].map(() => {
      const start = performance.now();
      work();
      return performance.now() - start;
    });
    return times.sort((a, b) => a - b)[2].toFixed(1);
  };
  root.parsing = timed(() => JSON.parse(document.getElementById("heap").textContent));
  // What is drawn is read back, so that it has to be there.
  root.drawing = timed(() => { draw(); context.getImageData(0, 0, 1, 1); });

  // The mean of the colours of pages, each by itself.
  const expected = (from, to) => {
    const sum = [0, 0, 0];
    for (let page = from; page < to; page++) colourOf(spanOf(page)).forEach((part, i) => { sum[i] += part; });
    return sum.map(part => part / (to - from));
  };
  const middle = cell => {
    const { size } = levels[level], edge = size > 12 ? 2 : 1;
    return [(cell % columns) * size + (size - edge) / 2, Math.floor(cell / columns) * size - view.scrollTop + (size - edge) / 2];
  };
  const look = each => {
    const ratio = window.devicePixelRatio || 1, { pages, size } = levels[level];
    const { width, height, data } = context.getImageData(0, 0, canvas.width, canvas.height);
    for (let cell = Math.floor(view.scrollTop / size) * columns; cell * pages < SHOWN; cell++) {
      const [x, y] = middle(cell).map(v => Math.floor(v * ratio));
      if (y >= height) break;
      const place = 4 * (y * width + x);
      if (y >= 0) each(cell, [...data.slice(place, place + 4)]);
    }
  };
  let cells = 0;
  const wrong = [];
  const check = () => {
    const { pages } = levels[level];
    look((cell, pixel) => {
      const from = cell * pages, to = Math.min(from + pages, SHOWN);
      const should = [...expected(from, to), 255];
      cells++;
      if (should.some((part, i) => Math.abs(part - pixel[i]) > 1)) wrong.push(`${mode} ${from} to ${to}: ${pixel}, not ${should}`);
    });
  };
  const modes = [...at("modes").children].map(button => button.dataset.mode);
  root.drawnFirst = root.drawn;
  for (const name of modes) { setMode(name); check(); }
  root.cells = cells;
  root.modes = modes;

  // One view of single pages, in the middle.
  setMode("state");
  while (levels[level].pages > 1 || (SHOWN > 1000 && levels[level].size < 10)) zoom(1);
  view.scrollTop = Math.floor(at("spacer").offsetHeight / 2);
  cells = 0;
  for (const name of modes) { setMode(name); draw(); check(); }
  root.zoomed = cells;
  root.wrong = wrong.length;
  root.first = wrong.slice(0, 3);

  // What is said of some pages when the pointer is on them, and when they are chosen.
  setMode("state");
  const told = cell => {
    const [x, y] = middle(cell), box = canvas.getBoundingClientRect();
    canvas.dispatchEvent(new MouseEvent("mousemove", { clientX: box.left + x, clientY: box.top + y, bubbles: true }));
    return [...at("tip").children].map(line => line.textContent).join("; ");
  };
  const shown = [];
  look((cell, pixel) => shown.push([cell, pixel.slice(0, 3)]));
  for (const [page, pixel] of shown.slice(0, 400)) {
    root[`pixel${page}`] = pixel;
    root[`hover${page}`] = told(page);
    choose(page);
    root[`chosen${page}`] = `${at("chosen").dataset.state}; ${[...at("chosen").querySelectorAll("dt, dd")].map(line => line.textContent).join("; ")}`;
  }
}
