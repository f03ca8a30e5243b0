// Names for controls that the theme leaves without one, or with one that is not the text shown.
for (const summary of document.querySelectorAll("details > summary:not([aria-label])")) {
  const link = summary.closest("li")?.querySelector(":scope > a");
  if (link) summary.setAttribute("aria-label", `Pages under ${link.textContent.trim()}`);
}
for (const button of document.querySelectorAll(".search-button-field")) {
  button.setAttribute("aria-label", button.innerText.replace(/\s+/g, " ").trim() || "Search");
}

// What is wider than the page scrolls by itself, so it has to be reachable by keyboard.
const scrollers = document.querySelectorAll("div.math, .mcbn-output");
function addTabStops() {
  for (const box of scrollers) {
    if (box.scrollWidth > box.clientWidth) {
      box.tabIndex = 0;
      box.setAttribute("role", "group");
      box.setAttribute("aria-label", box.matches(".math") ? "Formula" : "Output");
    } else {
      for (const name of ["tabindex", "role", "aria-label"]) box.removeAttribute(name);
    }
  }
}
addTabStops();
window.addEventListener("resize", addTabStops);
