"use strict";
// Draws one search tree of the data in #data-trees (see trees.py). All text of the run becomes text nodes, never markup.
(function () {
  var data = JSON.parse(document.getElementById("data-trees").textContent);
  var svg = document.getElementById("tree"), space = svg.namespaceURI;
  var box = document.getElementById("tree-box"), fit = document.getElementById("tree-fit");
  var about = document.getElementById("tree-about"), panel = document.getElementById("tree-step");
  var problems = document.getElementById("tree-problem"), strategies = document.getElementById("tree-strategy");
  var PARENT = 0, X = 1, Y = 2, RADIUS = 3, DRAWS = 4, SCORE = 5, COLOUR = 6, ENDED = 7, TEXT = 8;
  var KIND = 0, NODE = 1, TO = 2, CANDIDATES = 3, WHY = 4;
  var search, groups, edges, depths, children, marks, pinned;

  function make(name, attributes, parent, text) {
    var element = document.createElementNS(space, name);
    Object.keys(attributes).forEach(function (key) { element.setAttribute(key, attributes[key]); });
    if (text !== undefined) { element.textContent = text; }
    parent.appendChild(element);
    return element;
  }

  function put(name, parent, text, kind) {
    var element = document.createElement(name);
    if (text !== undefined) { element.textContent = text; }
    if (kind) { element.className = kind; }
    parent.appendChild(element);
    return element;
  }

  function place(number) { return number === 0 ? "the prompt" : "step " + depths[number]; }

  function wayTo(number) {
    var way = [number];
    while (way[0]) { way.unshift(search.nodes[way[0]][PARENT]); }
    return way;
  }

  // From one point towards another, so far.
  function towards(x, y, toX, toY, far) {
    var length = Math.hypot(toX - x, toY - y) || 1;
    return [x + (toX - x) / length * far, y + (toY - y) / length * far];
  }

  function drawEdges() {
    search.nodes.forEach(function (node, number) {
      if (!number) { return; }
      var from = search.nodes[node[PARENT]], middle = (from[X] + node[X]) / 2;
      var d = "M" + from[X] + " " + from[Y] + "C" + middle + " " + from[Y] + " " + middle + " " + node[Y] + " " + node[X] + " " + node[Y];
      edges[number] = make("path", { d: d, "class": "edge" + (search.path.indexOf(number) > 0 ? " chosen" : "") }, svg);
    });
  }

  function drawCut(event) {
    var from = search.nodes[event[NODE]], to = search.nodes[event[TO]];
    var bendX = (from[X] + to[X]) / 2, bendY = (from[Y] + to[Y]) / 2 + 13 * Math.max(1, depths[event[NODE]] - depths[event[TO]]);
    var start = towards(from[X], from[Y], bendX, bendY, from[RADIUS] + 2);
    var end = towards(to[X], to[Y], bendX, bendY, to[RADIUS] + 4);
    make("path", { d: "M" + start + "Q" + bendX + " " + bendY + " " + end, "class": "arrow" }, svg);
    var back = towards(end[0], end[1], bendX, bendY, 8), dx = (back[1] - end[1]) / 2, dy = (end[0] - back[0]) / 2;
    make("path", { d: "M" + end + "L" + [back[0] + dx, back[1] + dy] + "L" + [back[0] - dx, back[1] - dy] + "Z", "class": "head" }, svg);
    if (event[CANDIDATES].length > 1) {
      var x = (start[0] + 2 * bendX + end[0]) / 4, y = (start[1] + 2 * bendY + end[1]) / 4;
      make("text", { x: x, y: y + 4, "text-anchor": "middle" }, svg, event[CANDIDATES].length + " cuts");
    }
  }

  function drawNode(number) {
    var node = search.nodes[number], radius = node[RADIUS], kinds = marks[number];
    var group = make("g", { "class": "node", transform: "translate(" + node[X] + " " + node[Y] + ")", tabindex: -1, role: "button" }, svg);
    group.setAttribute("aria-label", [place(number), node[SCORE] === null ? "" : "score " + node[SCORE], node[DRAWS] > 1 ? "drawn " + node[DRAWS] + " times" : "", kinds.join(", ")].filter(Boolean).join("; "));
    make("circle", { "class": "hit", r: Math.max(14, radius + 6) }, group);
    if (search.finished.indexOf(number) >= 0) { make("circle", { "class": "ring", r: radius + 3.5 }, group); }
    var look = "disc" + (search.path.indexOf(number) >= 0 ? " chosen" : "") + (kinds.indexOf("cut") >= 0 ? " undone" : "");
    if (number) {
      make("circle", { "class": look, r: radius, style: "fill:" + node[COLOUR] }, group);
    } else {
      make("rect", { "class": look, x: -8, y: -8, width: 16, height: 16, rx: 2 }, group);
    }
    // One mark inside; the panel names all decisions.
    var shown = ["reject", "loop", "budget", "prune"].filter(function (kind) { return kinds.indexOf(kind) >= 0; })[0];
    if (shown) { make("path", { "class": "mark", d: data.glyphs[shown] }, group); }
    var beside = Math.max(16, radius + 8);
    var label = [node[SCORE], node[DRAWS] > 1 ? "×" + node[DRAWS] : null].filter(Boolean).join(" ");
    var last = search.path.length && search.path[search.path.length - 1] === number;
    // Above a node from which lines go on, beside one where they end.
    make("text", children[number].length ? { x: 0, y: -radius - 5, "text-anchor": "middle" } : { x: beside, y: 4 }, group, label);
    if (last) { make("text", { x: beside, y: 17, "class": "end" }, group, "chosen"); }
    group.addEventListener("mouseenter", function () { show(number); });
    group.addEventListener("mouseleave", function () { show(pinned); });
    group.addEventListener("click", function () { pin(number); group.focus({ preventScroll: true }); });
    group.addEventListener("focus", function () { pin(number); });
    group.addEventListener("keydown", function (event) { walk(event, number); });
    groups[number] = group;
  }

  function walk(event, number) {
    var level = [], next, x = search.nodes[number][X];
    search.nodes.forEach(function (node, other) { if (node[X] === x) { level.push(other); } });
    level.sort(function (a, b) { return search.nodes[a][Y] - search.nodes[b][Y]; });
    if (event.key === "ArrowLeft") { next = search.nodes[number][PARENT]; }
    if (event.key === "ArrowRight") { next = children[number][0]; }
    if (event.key === "ArrowUp") { next = level[level.indexOf(number) - 1]; }
    if (event.key === "ArrowDown") { next = level[level.indexOf(number) + 1]; }
    if (event.key === "Home") { next = 0; }
    if (event.key === "Enter" || event.key === " ") { next = number; }
    if (next === undefined || next === null) { return; }
    event.preventDefault();
    groups[next].focus();
  }

  function pin(number) {
    groups[pinned].setAttribute("tabindex", -1);
    pinned = number;
    groups[pinned].setAttribute("tabindex", 0);
    show(number);
  }

  function said(event, number) {
    var names = { refill: "Drawn again from here", prune: "Left behind", reject: "Given up", loop: "Stopped for repeating itself", budget: "Out of tokens", choose: "Chosen as the answer" };
    var what = names[event[KIND]], counts = {};
    if (event[KIND] === "cut") {
      what = event[NODE] === number ? "Cut back to " + (event[TO] === null ? "an earlier step" : place(event[TO])) : "Cut back to here from " + place(event[NODE]);
    }
    event[CANDIDATES].forEach(function (name) { if (name !== "") { counts[name] = (counts[name] || 0) + 1; } });
    var who = Object.keys(counts).map(function (name) { return name + (counts[name] > 1 ? " (" + counts[name] + " times)" : ""); });
    return what + ": " + data.texts[event[WHY]] + (who.length ? " [candidate " + who.join(", ") + "]" : "");
  }

  function show(number) {
    var node = search.nodes[number], way = wayTo(number), own = [], text;
    groups.forEach(function (group, other) { group.setAttribute("class", "node" + (other === number ? " on" : "")); });
    edges.forEach(function (edge, other) { edge.classList.toggle("on", way.indexOf(other) > 0); });
    panel.textContent = "";
    put("h4", panel, number ? "Step " + depths[number] : "The prompt");
    if (number) {
      put("div", panel, data.texts[node[TEXT]].trim() || "(no text)", "said");
      put("p", panel, (node[SCORE] === null ? "Not scored" : "Score " + node[SCORE]) + " · drawn " + (node[DRAWS] === 1 ? "once" : node[DRAWS] + " times"));
      if (node[ENDED] !== null) { put("p", panel, data.texts[node[ENDED]]); }
    }
    search.events.forEach(function (event) {
      if (event[NODE] === number || (event[KIND] === "cut" && event[TO] === number)) { own.push(said(event, number)); }
    });
    if (own.length) {
      var list = put("ul", panel);
      own.forEach(function (line) { put("li", list, line); });
    }
    if (way.length > 2) {
      text = way.slice(1).map(function (other) { return data.texts[search.nodes[other][TEXT]]; }).join("");
      var more = put("details", panel);
      put("summary", more, "The response up to here");
      put("div", more, text.trim(), "said");
    }
  }

  function tell(problem) {
    about.textContent = "";
    put("div", about, problem.prompt, "prompt");
    var list = put("dl", about);
    [["reference answer", problem.answer]].concat(search.facts).forEach(function (fact, row) {
      put("dt", list, fact[0]);
      put("dd", list, fact[1], row < 2 ? "strong" : "");
    });
  }

  function draw() {
    var problem = data.problems[problems.selectedIndex];
    search = problem.searches[strategies.selectedIndex];
    groups = []; edges = []; depths = [0];
    children = search.nodes.map(function () { return []; });
    marks = search.nodes.map(function () { return []; });
    search.nodes.forEach(function (node, number) {
      if (number) { depths[number] = depths[node[PARENT]] + 1; children[node[PARENT]].push(number); }
    });
    children.forEach(function (own) { own.sort(function (a, b) { return search.nodes[a][Y] - search.nodes[b][Y]; }); });
    search.events.forEach(function (event) { marks[event[NODE]].push(event[KIND]); });
    svg.textContent = "";
    svg.setAttribute("viewBox", "0 0 " + search.size[0] + " " + search.size[1]);
    svg.setAttribute("width", search.size[0]);
    svg.setAttribute("height", search.size[1]);
    for (var depth = 0; depth <= search.depth; depth += 1) {
      make("text", { x: data.left + data.column * depth, y: 18, "text-anchor": "middle", "class": "column" }, svg, depth ? "step " + depth : "prompt");
    }
    drawEdges();
    search.events.forEach(function (event) { if (event[KIND] === "cut" && event[TO] !== null) { drawCut(event); } });
    search.nodes.forEach(function (node, number) { drawNode(number); });
    pinned = search.path.length ? search.path[search.path.length - 1] : 0;
    tell(problem);
    pin(pinned);
    var best = search.nodes[pinned];
    box.scrollTop = Math.max(0, best[Y] - box.clientHeight / 2);
    box.scrollLeft = Math.max(0, best[X] + 74 - box.clientWidth);
    size();
  }

  function size() {
    var larger = search.size[0] > box.clientWidth + 1 || search.size[1] > box.clientHeight + 1;
    var on = fit.getAttribute("aria-pressed") === "true";
    fit.style.visibility = larger || on ? "visible" : "hidden";
    svg.classList.toggle("fit", on && larger);
  }

  function fill(select, items) {
    var before = select.value;
    select.textContent = "";
    items.forEach(function (item) { put("option", select, item.label).value = item.strategy || item.label; });
    select.value = before;
  }

  problems.addEventListener("change", function () {
    var problem = data.problems[problems.selectedIndex];
    fill(strategies, problem.searches);
    if (strategies.selectedIndex < 0) { strategies.selectedIndex = problem.start; }
    draw();
  });
  strategies.addEventListener("change", draw);
  fit.addEventListener("click", function () {
    fit.setAttribute("aria-pressed", String(fit.getAttribute("aria-pressed") !== "true"));
    size();
  });
  window.addEventListener("resize", function () { size(); });
  fill(problems, data.problems);
  problems.selectedIndex = 0;
  fill(strategies, data.problems[0].searches);
  strategies.selectedIndex = data.problems[0].start;
  draw();
})();
