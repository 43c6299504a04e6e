// Draw the figures of the tutorials with the copy of plotly that is part of this site,
// in the colours of the page, and again when a reader switches them.
(function () {
  "use strict";
  const places = Array.from(document.querySelectorAll(".figure[data-figure]"));
  if (!places.length) return;
  const here = document.querySelector('script[src$="assets/figures.js"]').src;

  function colours() {
    const style = getComputedStyle(document.body);
    return {
      text: style.getPropertyValue("--md-default-fg-color").trim() || style.color,
      grid: "rgba(127, 127, 127, 0.25)",
    };
  }

  function decode(text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return JSON.parse(new TextDecoder().decode(bytes));
  }

  function laidOut(layout, narrow) {
    const { text, grid } = colours();
    const result = JSON.parse(JSON.stringify(layout));
    const given = result.title && (result.title.text || result.title);
    result.title = {
      text: given || "", x: 0, xref: "container", pad: { l: 4 },
      y: 1, yref: "container", yanchor: "top", font: { size: 15 },
    };
    result.title.pad.t = 8;
    result.autosize = true;
    result.font = Object.assign({ size: 13 }, result.font, { color: text });
    result.paper_bgcolor = "rgba(0,0,0,0)";
    result.plot_bgcolor = "rgba(0,0,0,0)";
    result.colorway = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd"];
    result.margin = Object.assign({ l: 60, r: 16, t: 48, b: 50 }, result.margin);
    result.legend = Object.assign(
      {
        orientation: "h", x: 0, xref: "container", xanchor: "left",
        y: 0, yref: "container", yanchor: "bottom", font: { size: 12 },
      },
      result.legend
    );
    result.hovermode = result.hovermode || "closest";
    for (const key of ["xaxis", "yaxis", ...Object.keys(result)]) {
      if (!/^[xy]axis\d*$/.test(key)) continue;
      const axis = result[key] || {};
      const title = axis.title && (axis.title.text || axis.title);
      result[key] = Object.assign({}, axis, {
        automargin: true, gridcolor: grid, zerolinecolor: grid, linecolor: grid,
        tickcolor: grid, title: { text: title || "", font: { size: 13 }, standoff: 8 },
      });
    }
    for (const note of result.annotations || []) {
      note.font = Object.assign({}, note.font, { size: narrow ? 11 : 13 });
    }
    result.height = result.height || (narrow ? 440 : 420);
    return result;
  }

  async function draw() {
    for (const place of places) {
      const figure = decode(place.dataset.figure);
      const narrow = place.clientWidth < 560;
      await window.Plotly.react(place, figure.data, laidOut(figure.layout, narrow), {
        responsive: true, displaylogo: false, displayModeBar: false,
      });
    }
    document.body.dataset.figures = "drawn";
  }

  const script = document.createElement("script");
  script.src = here.replace(/figures\.js$/, "plotly.min.js");
  script.onload = function () {
    draw();
    new MutationObserver(draw).observe(document.body, {
      attributes: true, attributeFilter: ["data-md-color-scheme"],
    });
  };
  document.head.appendChild(script);
})();
