"""Orders: what is accepted, how they move, what survives."""

import json
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "api"))
import orders as shop  # noqa: E402


class Validation(unittest.TestCase):
    GOOD = {"customer": " Ada ", "item": "decaf", "quantity": 2}

    def test_a_good_order_is_trimmed(self):
        self.assertEqual(shop.validate(self.GOOD), ("Ada", "decaf", 2))

    def test_each_wrong_field_is_named(self):
        for field, value in (("customer", ""), ("customer", "x" * 41), ("customer", 7), ("customer", "a\nb"), ("item", "tea"), ("item", ["decaf"]), ("quantity", 0), ("quantity", 21), ("quantity", "2"), ("quantity", True), ("quantity", 1.5), ("price", 1)):
            with self.subTest(field=field, value=value), self.assertRaises(shop.Invalid) as caught:
                shop.validate({**self.GOOD, field: value})
            self.assertEqual(list(caught.exception.fields), [field])
        for body in (None, [], "order", 7):
            with self.assertRaises(shop.Invalid):
                shop.validate(body)


class Board(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = pathlib.Path(directory.name) / "orders.json"
        self.orders = shop.Orders(self.path)

    def test_orders_survive_a_restart_and_numbers_go_on(self):
        placed = self.orders.place("Ada", "decaf", 2)
        again = shop.Orders(self.path)
        self.assertEqual(again.list(), self.orders.list())
        self.assertEqual(again.place("Bo", "filters", 1)["id"], placed["id"] + 1)

    def test_an_order_moves_to_shipped_and_no_further(self):
        placed = self.orders.place("Ada", "decaf", 2)
        states = [self.orders.advance(placed["id"])["state"] for _ in range(3)]
        self.assertEqual(states, ["packing", "shipped", "shipped"])
        with self.assertRaises(shop.Unknown):
            self.orders.advance(1)

    def test_listeners_hear_of_changes_and_slow_ones_are_let_go(self):
        waiting = self.orders.listen()
        placed = self.orders.place("Ada", "decaf", 2)
        self.assertEqual(waiting.get_nowait(), {"type": "order", "what": "placed", "order": placed})
        for _ in range(shop.WAITING_MAX + 1):
            self.orders.place("Ada", "decaf", 1)
        self.assertTrue(waiting.overflowed)

    def test_a_full_board_forgets_the_oldest_shipped_order_and_then_refuses(self):
        shop_max, shop.ORDERS_MAX = shop.ORDERS_MAX, 7
        self.addCleanup(setattr, shop, "ORDERS_MAX", shop_max)
        for _ in range(3):
            self.orders.place("Ada", "decaf", 1)
        self.assertEqual(len(self.orders.list()), 7)
        self.assertNotIn("shipped", [order["state"] for order in self.orders.list()])
        with self.assertRaises(shop.Full):
            self.orders.place("Ada", "decaf", 1)

    def test_the_file_is_whole_json_after_each_change(self):
        self.orders.place("Ada", "decaf", 2)
        kept = json.loads(self.path.read_text())
        self.assertEqual(len(kept["orders"]), len(shop.FIRST_ORDERS) + 1)
        self.assertFalse(self.path.with_suffix(".json.new").exists())


if __name__ == "__main__":
    unittest.main()
