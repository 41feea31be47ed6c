"use strict";
// Filters: the rows of a listing that hold every word.
for (const input of document.querySelectorAll(".filter input")) {
  const listing = input.closest(".listing");
  const rows = [...listing.querySelectorAll("li")].map((row) => [row, row.textContent.toLowerCase()]);
  const output = listing.querySelector("output");
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    for (const [row, text] of rows) {
      row.hidden = !words.every((word) => text.includes(word));
      found += !row.hidden;
    }
    output.textContent = words.length ? `${found.toLocaleString("en")} found` : output.dataset.count;
  });
}
// Players: one at a time, a line on the pictures where it is, a click on them to go there.
for (const player of document.querySelectorAll(".player")) {
  const audio = player.querySelector("audio");
  const pictures = player.querySelector(".pictures");
  const show = () => {
    pictures.style.setProperty("--at", audio.currentTime / (audio.duration || 1));
    if (!audio.paused) requestAnimationFrame(show);
  };
  audio.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
    pictures.classList.add("played");
    show();
  });
  audio.addEventListener("seeked", show);
  pictures.addEventListener("click", (event) => {
    const box = pictures.getBoundingClientRect();
    const go = () => (audio.currentTime = ((event.clientX - box.left) / box.width) * audio.duration);
    if (audio.readyState) go();
    else audio.addEventListener("loadedmetadata", go, { once: true });
    audio.play();
  });
}
