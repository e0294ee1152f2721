// Unpacks plotly.js, which the page holds as gzip in base64, and draws the figures whose JSON stands beside it.
"use strict";
(function () {
  var charts = Array.prototype.slice.call(document.querySelectorAll(".chart"));
  function height(div, width) {
    var room = width < 600 && div.entries > 1 ? 18 * div.entries : 0;
    return div.plain + room;
  }
  function unpack() {
    var packed = atob(document.getElementById("plotly").textContent);
    var bytes = new Uint8Array(packed.length);
    for (var i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }
  function draw(text) {
    var script = document.createElement("script");
    script.textContent = text;
    document.head.appendChild(script);
    charts.forEach(function (div) {
      var figure = JSON.parse(document.getElementById("data-" + div.id).textContent);
      var named = figure.data.filter(function (trace) { return trace.showlegend !== false; });
      div.plain = figure.layout.height;
      div.entries = figure.layout.showlegend === false ? 0 : named.length;
      figure.layout.height = height(div, div.clientWidth);
      Plotly.newPlot(div, figure.data, figure.layout, { responsive: true, displaylogo: false, displayModeBar: false });
    });
    window.addEventListener("beforeprint", function () {
      charts.forEach(function (div) {
        var width = div.parentNode.className === "wide" ? 670 : 325;
        Plotly.relayout(div, { width: width, height: height(div, width) });
      });
    });
    window.addEventListener("afterprint", function () {
      charts.forEach(function (div) {
        Plotly.relayout(div, { width: null, height: height(div, div.clientWidth), autosize: true });
      });
    });
  }
  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("details:not(.more)").forEach(function (item) { item.open = true; });
  });
  Promise.resolve().then(unpack).then(draw, function () {
    charts.forEach(function (div) {
      div.textContent = "This browser is too old to draw the figure; the numbers stand in the tables.";
    });
  });
})();
