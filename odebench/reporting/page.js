"use strict";
const page = JSON.parse(document.getElementById("data").textContent);
const ROW_PX = 28;  // height of a row of a table, as in the style sheet
const tables = [];
const collator = new Intl.Collator("en", {numeric: true});

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// A table shows only the rows that are in view, so that thousands of runs stay fluent.
function makeTable(data, place) {
  const columns = data.columns, size = columns[0].texts.length;
  const haystacks = Array.from({length: size}, (_, i) =>
    columns.filter(c => c.isSetting).map(c => `${c.title} ${c.texts[i]}`).join(" ").toLowerCase());
  const best = columns.map(c => new Set(c.best));
  const range = columns.map(() => [-Infinity, Infinity]);
  let sort = data.sort, down = data.down, words = [], rows = [];

  const search = make("input", {type: "search", placeholder: "filter: adjoint 0.001", ariaLabel: "filter rows"});
  const count = make("span", {className: "note count"});
  const ranges = make("button", {textContent: "Ranges", title: "limit the numbers of a column", ariaPressed: "false"});
  const csv = make("button", {textContent: "CSV", title: "download the rows that are shown, with all columns"});
  const picker = make("details", {className: "picker"}, make("summary", {textContent: "Columns"}));
  const list = make("div");
  picker.append(list);
  const head = make("thead"), body = make("tbody"), group = make("colgroup");
  const scroller = make("div", {className: "wide"}, make("table", {}, group, head, body));
  place.append(make("div", {className: "tools"}, search, picker, ranges, csv, count), scroller);

  const value = (column, i) => column.values ? column.values[i] : column.texts[i] === "-" ? null : column.texts[i];

  // Numbers come before text, empty cells last in either direction.
  function compare(column, a, b) {
    const [x, y] = [value(column, a), value(column, b)];
    if (x === null || y === null) return (x === null) - (y === null) || a - b;
    const texts = (typeof x === "string") - (typeof y === "string");
    const order = texts || (typeof x === "string" ? collator.compare(x, y) : x - y);
    return (down ? -order : order) || a - b;
  }

  function isKept(i) {
    return words.every(word => haystacks[i].includes(word)) && columns.every((column, c) => {
      const [low, high] = range[c];
      if (low === -Infinity && high === Infinity) return true;
      const x = value(column, i);
      return typeof x === "number" && low <= x && x <= high;
    });
  }

  function update() {
    rows = Array.from({length: size}, (_, i) => i).filter(isKept);
    if (sort !== null) rows.sort((a, b) => compare(columns[sort], a, b));
    count.textContent = `${rows.length.toLocaleString("en")} of ${size.toLocaleString("en")} rows`;
    draw();
  }

  function draw() {
    const shown = columns.filter(c => c.shown);
    const first = Math.max(0, Math.min(Math.floor(scroller.scrollTop / ROW_PX) - 10, rows.length - 1));
    const visible = rows.slice(first, first + Math.ceil(scroller.clientHeight / ROW_PX || 40) + 20);
    const spacer = number => make("tr", {ariaHidden: "true", style: `height: ${number * ROW_PX}px`, className: "spacer"});
    body.replaceChildren(spacer(first), ...visible.map(i => {
      const row = make("tr", {tabIndex: 0});
      if (data.ids) row.dataset.row = data.ids[i];
      row.classList.toggle("selected", data.ids !== undefined && data.ids[i] === selected);
      for (const column of shown) {
        const cell = make("td", {textContent: column.texts[i], title: column.texts[i]});
        if (column.isNumeric) cell.className = "number";
        if (best[columns.indexOf(column)].has(i)) cell.classList.add("best");
        row.append(cell);
      }
      return row;
    }), spacer(rows.length - first - visible.length));
  }

  function drawHead() {
    const shown = columns.filter(c => c.shown);
    const width = column => Math.min(Math.max(...column.texts.map(text => text.length), column.title.length / 2, 5), 28);
    group.replaceChildren(...shown.map(c => make("col", {style: `width: calc(${width(c)}ch + 1.8rem)`})));
    const titles = make("tr"), limits = make("tr", {className: "limits", hidden: ranges.ariaPressed === "false"});
    for (const column of shown) {
      const index = columns.indexOf(column);
      const title = make("th", {title: column.help, scope: "col", className: column.isNumeric ? "number" : ""},
        make("button", {textContent: column.title, onclick: () => sortBy(index)}));
      if (index === sort) title.ariaSort = down ? "descending" : "ascending";
      titles.append(title);
      limits.append(make("th", {}, ...(column.isNumeric ? ["min", "max"].map((name, end) => limit(index, name, end)) : [])));
    }
    head.replaceChildren(titles, limits);
  }

  function limit(index, name, end) {
    const now = range[index][end];
    return make("input", {placeholder: name, ariaLabel: `${name} ${columns[index].title}`, value: isFinite(now) ? now : "",
      oninput: event => {
        const text = event.target.value.trim(), number = Number(text);
        event.target.classList.toggle("wrong", Number.isNaN(number));
        range[index][end] = text === "" || Number.isNaN(number) ? [-Infinity, Infinity][end] : number;
        update();
      }});
  }

  function sortBy(index) {
    down = index === sort ? !down : Boolean(columns[index].down);
    sort = index;
    drawHead();
    update();
  }

  function download() {
    const quoted = x => /[",\n]/.test(x) ? `"${x.replaceAll('"', '""')}"` : x;
    const stored = (c, x) => x === null ? "" : typeof x === "number" ? String(+(x / (c.scale || 1)).toPrecision(12)) : x;
    const fields = columns.flatMap(c => [[c.key, i => stored(c, value(c, i))],
      ...(c.stds ? [[`${c.key}_std`, i => stored(c, c.stds[i])]] : [])]);
    const lines = [fields.map(([name]) => name), ...rows.map(i => fields.map(([, text]) => text(i)))];
    const text = lines.map(line => line.map(quoted).join(",") + "\n").join("");
    const link = make("a", {href: URL.createObjectURL(new Blob([text], {type: "text/csv"})), download: `${data.title}.csv`});
    link.click();
    return text;
  }

  for (const column of columns) {
    const box = make("input", {type: "checkbox", checked: column.shown, onchange: () => {
      column.shown = box.checked;
      drawHead();
      draw();
    }});
    list.append(make("label", {title: column.help}, box, ` ${column.title}`));
  }
  search.oninput = () => { words = search.value.toLowerCase().split(/\s+/).filter(Boolean); scroller.scrollTop = 0; update(); };
  ranges.onclick = () => { ranges.ariaPressed = String(ranges.ariaPressed === "false"); drawHead(); };
  csv.onclick = download;
  scroller.onscroll = draw;
  const choose = event => {
    const row = event.target.closest("tr[data-row]");
    if (row) select(Number(row.dataset.row));
  };
  body.onclick = choose;
  body.onkeydown = event => { if (event.key === "Enter") choose(event); };
  const reveal = id => {
    const at = data.ids ? rows.indexOf(data.ids.indexOf(id)) : -1;
    const top = at * ROW_PX, height = scroller.clientHeight - head.offsetHeight;
    if (at >= 0 && (top < scroller.scrollTop || top + ROW_PX > scroller.scrollTop + height)) scroller.scrollTop = top - height / 2;
  };
  drawHead();
  update();
  return {data, draw, download, reveal};
}

// A figure tells the point under the mouse, and highlights what belongs to the selected row.
function makeFigure(svg, series) {
  const marks = document.createElementNS(svg.namespaceURI, "g");
  svg.append(marks);
  const artists = {};
  for (const artist of svg.querySelectorAll("[data-series]")) (artists[artist.dataset.series] ||= []).push(artist);
  const row = (one, i) => one.rows.length === 1 ? one.rows[0] : one.rows[i];

  function ring(one, i, radius) {
    const circle = document.createElementNS(marks.namespaceURI, "circle");
    circle.setAttribute("class", "ring");
    for (const [name, value] of [["cx", one.px[i]], ["cy", one.py[i]], ["r", radius]]) circle.setAttribute(name, value);
    marks.append(circle);
  }

  function highlight() {
    marks.replaceChildren();
    for (const one of series) {
      const has = selected === null || one.rows.includes(selected);
      for (const artist of artists[one.id] || []) artist.classList.toggle("dim", !has);
      if (selected === null || one.rows.length !== one.px.length) continue;
      one.rows.forEach((number, i) => { if (number === selected) ring(one, i, 7); });
    }
  }

  function nearest(event) {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    let found = null, least = Infinity;
    for (const one of series) {
      const reach = one.reach || 12;
      for (let i = 0; i < one.px.length; i++) {
        const distance = Math.hypot(one.px[i] - at.x, one.py[i] - at.y);
        if (distance < Math.min(reach, least)) [found, least] = [[one, i], distance];
      }
    }
    return found;
  }

  svg.addEventListener("mousemove", event => {
    const found = nearest(event);
    highlight();
    svg.classList.toggle("hot", found !== null);
    tip.hidden = found === null;
    if (found === null) return;
    if (!found[0].reach) ring(...found, 5);  // not over the number in a cell
    tip.replaceChildren(...describe(...found));
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 4)}px`;
    tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 4)}px`;
  });
  svg.addEventListener("mouseleave", () => { tip.hidden = true; highlight(); });
  svg.addEventListener("click", event => {
    const found = nearest(event);
    if (found !== null && row(...found) !== undefined) select(row(...found));
  });

  function describe(one, i) {
    const number = x => Number(x.toPrecision(4)).toString();
    const error = one.yError && one.yError[i] ? ` ± ${number(one.yError[i])}` : "";
    const lines = [[one.xLabel, number(one.x[i])], [one.yLabel, number(one.y[i]) + error]];
    const id = row(one, i), table = tables.find(t => t.data.ids && t.data.ids.includes(id));
    if (table) {
      const at = table.data.ids.indexOf(id);
      lines.push(...table.data.columns.filter(c => c.shown).map(c => [c.title, c.texts[at]]));
    }
    return [make("b", {textContent: one.label}), ...lines.map(([name, text]) =>
      make("div", {}, make("span", {className: "note", textContent: `${name}: `}), text))];
  }

  return {series, artists, highlight, describe};
}

// The panel of the selected row: its settings that differ, and the command, figures and folder of each of its runs.
let selected = null;
const tip = make("div", {id: "tip", hidden: true});
document.body.append(tip);

function select(id) {
  selected = id === selected ? null : id;
  for (const table of tables) { table.draw(); if (selected !== null) table.reveal(selected); }
  figures.forEach(figure => figure.highlight());
  for (const panel of document.querySelectorAll(".panel")) panel.replaceChildren();
  if (selected === null) return;
  const table = tables.find(one => one.data.ids && one.data.ids.includes(id));
  const at = table.data.ids.indexOf(id);
  const differ = table.data.columns.filter(c => c.isSetting && c.texts[at] !== "-");
  const settings = make("p", {}, ...differ.flatMap(c => [make("span", {className: "note", textContent: `${c.title} `}),
    make("b", {textContent: c.texts[at]}), "  "]));
  const close = make("button", {textContent: "×", title: "close (Escape)", className: "close", onclick: () => select(id)});
  document.getElementById(`panel-${tables.indexOf(table)}`).append(close, settings, ...page.runs[id].map(runPanel));
}

function runPanel(run) {
  const folder = make("a", {href: run.folder, textContent: run.path, target: "_blank"});
  const pictures = run.figures.map(name => make("a", {href: run.folder + "figures/" + name, target: "_blank", title: name},
    make("img", {src: run.folder + "figures/" + name, alt: name, loading: "lazy",
                 onerror: event => event.target.replaceWith(name)})));
  return make("div", {className: "run"},
    make("p", {}, `${run.status}: `, folder, ...(run.message ? [` (${run.message})`] : [])),
    make("p", {}, make("code", {textContent: run.command})),
    make("div", {className: "pictures"}, ...pictures));
}

document.addEventListener("keydown", event => { if (event.key === "Escape" && selected !== null) select(selected); });
const figures = [...document.querySelectorAll("figure svg")].map((svg, index) => makeFigure(svg, page.figures[index]));
page.tables.forEach((data, index) => tables.push(makeTable(data, document.getElementById(`table-${index}`))));
