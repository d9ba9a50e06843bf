"""The shop's orders: what may be ordered, how an order moves, and where it is kept.

Owns validation, the file, and the listeners. Not here: HTTP.
"""

import json
import os
import queue
import threading
import time

CATALOG = {
    "yirgacheffe": ("Yirgacheffe, 500 g", 1650),
    "espresso": ("House espresso, 1 kg", 2890),
    "decaf": ("Decaf Sierra, ground", 1490),
    "filters": ("Paper filters, 100", 420),
    "dripper": ("Ceramic dripper", 2400),
}
STATES = ("new", "packing", "shipped")
ORDERS_MAX = 500
CUSTOMER_CHARS_MAX = 40
QUANTITY_MAX = 20
LISTENERS_MAX = 100
WAITING_MAX = 64

FIRST_ORDERS = (
    ("Mira Okafor", "yirgacheffe", 2, "new"),
    ("Studio Halden", "espresso", 6, "new"),
    ("Jonas Weber", "filters", 3, "packing"),
    ("Café Lumen", "espresso", 4, "packing"),
    ("Priya Raman", "dripper", 1, "shipped"),
    ("Tomás Silva", "decaf", 2, "shipped"),
)


class Invalid(Exception):
    """What is wrong with an order, by field."""

    def __init__(self, fields):
        super().__init__(", ".join(fields))
        self.fields = fields


class Unknown(Exception):
    pass


class Full(Exception):
    pass


def validate(body):
    """(customer, item, quantity) of a request's body, or Invalid with a sentence for each wrong field."""
    if not isinstance(body, dict):
        raise Invalid({"body": "must be an object with customer, item and quantity"})
    wrong = {f"{name}": "is not a field of an order" for name in sorted(body.keys() - {"customer", "item", "quantity"})[:5]}
    customer, item, quantity = body.get("customer"), body.get("item"), body.get("quantity")
    if not isinstance(customer, str) or not 1 <= len(customer.strip()) <= CUSTOMER_CHARS_MAX or not customer.isprintable():
        wrong["customer"] = f"must be a name of 1 to {CUSTOMER_CHARS_MAX} characters"
    if not isinstance(item, str) or item not in CATALOG:
        wrong["item"] = "must be one of " + ", ".join(CATALOG)
    # True is an int in Python and no quantity anywhere.
    if not isinstance(quantity, int) or isinstance(quantity, bool) or not 1 <= quantity <= QUANTITY_MAX:
        wrong["quantity"] = f"must be a whole number from 1 to {QUANTITY_MAX}"
    if wrong:
        raise Invalid(wrong)
    return customer.strip(), item, quantity


class Orders:
    """All orders, in memory and in one file that is replaced whole."""

    def __init__(self, path, now=time.time):
        self._path, self._now, self._lock = path, now, threading.Lock()
        self._listeners = set()
        try:
            with open(path, encoding="utf-8") as file:
                kept = json.load(file)
            self._next, self._orders = kept["next"], {order["id"]: order for order in kept["orders"]}
        except FileNotFoundError:
            self._next, self._orders = 1001, {}
            for customer, item, quantity, state in FIRST_ORDERS:
                self._add(customer, item, quantity, state)
            self.save()

    def list(self):
        with self._lock:
            return sorted(self._orders.values(), key=lambda order: -order["id"])

    def place(self, customer, item, quantity):
        with self._lock:
            if len(self._orders) >= ORDERS_MAX:
                shipped = [order["id"] for order in self._orders.values() if order["state"] == "shipped"]
                if not shipped:
                    raise Full()
                del self._orders[min(shipped)]
            order = self._add(customer, item, quantity, "new")
            self._changed("placed", order)
            return order

    def advance(self, identity):
        """Moves an order to its next state; a shipped one stays as it is."""
        with self._lock:
            order = self._orders.get(identity)
            if order is None:
                raise Unknown()
            position = STATES.index(order["state"])
            if position + 1 < len(STATES):
                order = {**order, "state": STATES[position + 1], "changed_at": int(self._now() * 1000)}
                self._orders[identity] = order
                self._changed("advanced", order)
            return order

    def listen(self):
        """A bounded queue of events; None where too many listen already."""
        waiting = queue.Queue(WAITING_MAX)
        with self._lock:
            if len(self._listeners) >= LISTENERS_MAX:
                return None
            self._listeners.add(waiting)
        return waiting

    def leave(self, waiting):
        with self._lock:
            self._listeners.discard(waiting)

    def save(self):
        """On disk when it returns: written beside, synced, renamed."""
        text = json.dumps({"next": self._next, "orders": list(self._orders.values())})
        replacement = f"{self._path}.new"
        with open(replacement, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(replacement, self._path)

    def _add(self, customer, item, quantity, state):
        title, price = CATALOG[item]
        now = int(self._now() * 1000)
        order = {
            "id": self._next, "customer": customer, "item": item, "title": title, "quantity": quantity,
            "total_cents": price * quantity, "state": state, "placed_at": now, "changed_at": now,
        }
        self._orders[self._next] = order
        self._next += 1
        return order

    def _changed(self, what, order):
        self.save()
        for waiting in list(self._listeners):
            try:
                waiting.put_nowait({"type": "order", "what": what, "order": order})
            except queue.Full:
                # Its stream ends, and it asks again for the whole list.
                self._listeners.discard(waiting)
                waiting.overflowed = True
