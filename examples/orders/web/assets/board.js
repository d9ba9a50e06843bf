// The board: orders by fetch from the same origin, changes over the WebSocket. Everything from outside becomes text, never markup.

const TITLES = { new: "New", packing: "Packing", shipped: "Shipped" };
const NEXT = { new: "Start packing", packing: "Ship" };
const SHOWN_PER_LANE_MAX = 30;
const RETRY_MS_MAX = 10_000;

const $ = (id) => document.getElementById(id);
const money = new Intl.NumberFormat("en", { style: "currency", currency: "EUR" });
const clock = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", hour12: false });
const orders = new Map();
let catalog = new Map();

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function draw(freshId) {
  const all = [...orders.values()].sort((a, b) => b.id - a.id);
  const lanes = Object.keys(TITLES).map((state) => {
    const mine = all.filter((order) => order.state === state);
    const list = mine.length
      ? element("ol", {}, ...mine.slice(0, SHOWN_PER_LANE_MAX).map((order) => card(order, order.id === freshId)))
      : element("p", { className: "empty", textContent: "Nothing here." });
    return element("section", { className: `lane ${state}` },
      element("header", {}, element("h2", { textContent: TITLES[state] }), element("span", { className: "count", textContent: mine.length })),
      list);
  });
  $("board").replaceChildren(...lanes);
  $("board").setAttribute("aria-busy", "false");
  const count = (...states) => all.filter((order) => states.includes(order.state)).length;
  $("figure-open").textContent = count("new", "packing");
  $("figure-packing").textContent = count("packing");
  $("figure-shipped").textContent = count("shipped");
  $("figure-value").textContent = money.format(all.reduce((sum, order) => sum + order.total_cents, 0) / 100);
}

function card(order, fresh) {
  const bottom = element("div", { className: "bottom" }, element("b", { textContent: money.format(order.total_cents / 100) }));
  if (NEXT[order.state]) {
    const button = element("button", { type: "button", textContent: NEXT[order.state] });
    button.setAttribute("aria-label", `${NEXT[order.state]}: order ${order.id}`);
    button.addEventListener("click", () => advance(order.id, button));
    bottom.append(button);
  } else {
    bottom.append(element("span", { className: "done", textContent: "On its way" }));
  }
  return element("li", { className: fresh ? "order fresh" : "order" },
    element("div", { className: "top" }, element("span", { textContent: `#${order.id}` }), element("time", { textContent: clock.format(order.changed_at) })),
    element("h3", { textContent: order.customer }),
    element("p", { textContent: `${order.quantity} × ${order.title}` }),
    bottom);
}

function apply(order, fresh = true) {
  const known = orders.get(order.id);
  if (known && known.changed_at > order.changed_at) return;
  orders.set(order.id, order);
  draw(fresh ? order.id : undefined);
}

async function load() {
  const answer = await fetch("/api/orders", { headers: { Accept: "application/json" } });
  if (!answer.ok) throw new Error(`the API answered ${answer.status}`);
  const board = await answer.json();
  orders.clear();
  for (const order of board.orders) orders.set(order.id, order);
  if (!catalog.size) {
    catalog = new Map(board.catalog.map((entry) => [entry.item, entry]));
    $("item").replaceChildren(...board.catalog.map(({ item, title }) => element("option", { value: item, textContent: title })));
  }
  draw();
  price();
}

async function advance(id, button) {
  button.disabled = true;
  try {
    const answer = await fetch(`/api/orders/${id}/advance`, { method: "POST" });
    if (!answer.ok) throw new Error(`the API answered ${answer.status}`);
    apply(await answer.json());
  } catch (error) {
    button.disabled = false;
    $("said").textContent = `Not moved: ${error.message}`;
  }
}

function price() {
  const entry = catalog.get($("item").value);
  const quantity = Number($("quantity").value);
  $("price").textContent = entry && quantity > 0 ? money.format((entry.price_cents * quantity) / 100) : "";
}

function wrong(fields) {
  for (const name of ["customer", "item", "quantity"]) {
    const text = fields[name];
    $(`wrong-${name}`).hidden = !text;
    $(`wrong-${name}`).textContent = text ? `The ${name} ${text}.` : "";
    $(name).setAttribute("aria-invalid", text ? "true" : "false");
  }
}

$("order").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.currentTarget;
  const body = { customer: form.customer.value, item: form.item.value, quantity: form.quantity.valueAsNumber };
  const button = form.querySelector("button");
  button.disabled = true;
  try {
    const answer = await fetch("/api/orders", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
    const said = await answer.json();
    wrong(said.fields ?? {});
    if (answer.status === 201) {
      apply(said);
      $("said").textContent = `Order ${said.id} is placed.`;
      form.customer.value = "";
    } else {
      $("said").textContent = said.fields ? "" : `Not placed: ${said.error}.`;
    }
  } catch {
    $("said").textContent = "Not placed: the shop does not answer.";
  } finally {
    button.disabled = false;
  }
});
$("item").addEventListener("change", price);
$("quantity").addEventListener("input", price);

let socket;
let wait = 500;
const sent = new Map();

function state(name, text) {
  $("live").dataset.state = name;
  $("live-text").textContent = text;
}

function connect() {
  state("connecting", "Connecting");
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/live`);
  socket.addEventListener("open", () => {
    wait = 500;
    state("open", "Live");
    // What happened while nobody listened.
    load().catch(() => {});
  });
  socket.addEventListener("message", ({ data }) => receive(JSON.parse(data)));
  socket.addEventListener("close", () => {
    state("closed", "Offline, retrying");
    setTimeout(connect, wait * (0.75 + Math.random() / 2));
    wait = Math.min(wait * 2, RETRY_MS_MAX);
  });
}

function receive(message) {
  if (message.type === "order") {
    apply(message.order);
    note(message.what === "placed" ? `Order ${message.order.id} placed` : `Order ${message.order.id} → ${TITLES[message.order.state]}`);
  } else if (message.type === "presence") {
    state("open", message.pages === 1 ? "Live" : `Live · ${message.pages} pages`);
  } else if (message.type === "echo") {
    const began = sent.get(message.id);
    sent.delete(message.id);
    const took = began === undefined ? "" : `${(performance.now() - began).toFixed(1)} ms`;
    push($("echoes"), element("li", {}, element("span", { textContent: message.text }), element("time", { textContent: took })), 3);
  }
}

function note(text) {
  $("activity").querySelector(".none")?.remove();
  push($("activity"), element("li", {}, element("span", { textContent: text }), element("time", { textContent: clock.format(Date.now()) })), 5);
}

function push(list, item, max) {
  list.prepend(item);
  while (list.children.length > max) list.lastElementChild.remove();
}

$("echo").addEventListener("submit", (event) => {
  event.preventDefault();
  const words = $("words");
  if (!words.value || socket.readyState !== WebSocket.OPEN) return;
  const id = Math.random().toString(36).slice(2);
  sent.set(id, performance.now());
  socket.send(JSON.stringify({ type: "echo", text: words.value, id }));
  words.value = "";
});

load().catch((error) => {
  $("board").replaceChildren(element("p", { className: "empty", textContent: `The orders could not be loaded: ${error.message}` }));
});
connect();
