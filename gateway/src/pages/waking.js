"use strict";
(() => {
  const steps = [...document.querySelectorAll("li[data-stage]")];
  const title = document.querySelector("h1");
  const detail = document.querySelector("#detail");
  const again = document.querySelector("#again");
  const spoken = document.querySelector("#spoken");
  let seen = "";
  let failures = 0;
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const show = (news) => {
    steps.forEach((step, index) => {
      const state = index < news.step ? "done" : index === news.step && !news.problem ? "now" : "next";
      if (step.dataset.state !== state) {
        step.dataset.state = state;
        if (state === "now") {
          step.setAttribute("aria-current", "step");
          spoken.textContent = step.textContent;
        } else {
          step.removeAttribute("aria-current");
        }
      }
    });
    if (news.problem) {
      title.textContent = news.problem.title;
      detail.textContent = news.problem.detail;
      again.hidden = false;
    }
  };
  again.addEventListener("click", () => location.reload());
  // Whether there is nothing more to wait for.
  const take = (news) => {
    seen = news.seen;
    if (news.phase === "ready") {
      location.reload();
      return true;
    }
    show(news);
    return Boolean(news.problem);
  };
  const ask = async () => {
    for (;;) {
      try {
        const answer = await fetch("/.envforge/wake?seen=" + encodeURIComponent(seen), {
          cache: "no-store",
          headers: { accept: "application/json" },
        });
        // Expired, closed, or not allowed any more: the server has the page for that.
        if (answer.status === 403 || answer.status === 410) return location.reload();
        if (!answer.ok) throw new Error(String(answer.status));
        failures = 0;
        if (take(await answer.json())) return;
        await wait(100);
      } catch {
        failures += 1;
        await wait(Math.min(500 * 2 ** failures, 8000));
      }
    }
  };
  const events = new EventSource("/.envforge/wake/events");
  events.addEventListener("message", (message) => {
    if (take(JSON.parse(message.data))) events.close();
  });
  // Refused, cut off, or held back by something between: asking finds out which, and goes on.
  events.addEventListener("error", () => {
    events.close();
    ask();
  });
})();
