// The filter of the gallery: a button for each tag that the thumbnails carry. Several pressed show
// the tutorials that have them all; a button that would leave nothing cannot be pressed.
const thumbnails = [...document.querySelectorAll("[data-sgtags]")].map((box) => ({
  box,
  tags: JSON.parse(box.dataset.sgtags),
}));
const pressed = new Set();
const shows = (tags) => [...pressed].every((tag) => tags.includes(tag));

const filter = document.querySelector(".sphx-glr-tag-list");
filter.setAttribute("role", "group");
filter.setAttribute("aria-label", "Show tutorials by tag");
const found = document.createElement("p");
found.setAttribute("role", "status");

const buttons = [...new Set(thumbnails.flatMap(({ tags }) => tags))].sort().map((tag) => {
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.tag = tag;
  button.addEventListener("click", () => {
    if (!pressed.delete(tag)) pressed.add(tag);
    update();
  });
  return button;
});
filter.append(...buttons, found);

function update() {
  for (const { box, tags } of thumbnails) box.hidden = !shows(tags);
  // A section without a thumbnail left goes with its heading.
  for (const section of document.querySelectorAll("section:has(> .sphx-glr-thumbnails)")) {
    const boxes = [...section.querySelectorAll("[data-sgtags]")];
    if (boxes.length && section.parentElement.closest("section")) {
      section.hidden = boxes.every((box) => box.hidden);
    }
  }
  for (const button of buttons) {
    const { tag } = button.dataset;
    const count = thumbnails.filter(({ tags }) => shows(tags) && tags.includes(tag)).length;
    button.textContent = `${tag} ${count}`;
    button.setAttribute("aria-pressed", pressed.has(tag));
    button.disabled = !count;
  }
  const count = thumbnails.filter(({ box }) => !box.hidden).length;
  found.textContent = `${count} of ${thumbnails.length} tutorials`;
}

// A tag on a tutorial's page leads to its entry in the list below; here it presses the button.
function follow() {
  const button = buttons.find(({ dataset }) => `#tag-${dataset.tag.replaceAll(" ", "-")}` === location.hash);
  if (button) {
    pressed.clear();
    pressed.add(button.dataset.tag);
    filter.scrollIntoView();
  }
  update();
}
window.addEventListener("hashchange", follow);
follow();
