"""Generates the rows of this preset: messages to a shop, each with a JSON object that states its content.

    python presets/smollm2-135m-cpu/make_rows.py     # rewrites rows/ with identical bytes

Training rows and validation rows mention the same products, but have no sentences in common. Each row is a chat with a
system message that states the keys of the JSON object. The `category` column contains the topic, so that the report
shows a score for each topic.
"""

import json
from pathlib import Path
from random import Random

SEED = 20261127
NUM_ROWS = {"train": 480, "validation": 60}
SYSTEM = (
    "Reply with one JSON object: topic (refund, delivery, damage, account or invoice), product, order (a number), "
    "urgent (true or false)."
)
PRODUCTS = (
    "kettle",
    "lamp",
    "backpack",
    "headphones",
    "blender",
    "bicycle",
    "tent",
    "camera",
    "desk",
    "jacket",
    "printer",
    "watch",
)
TOPICS = {
    "train": {
        "refund": (
            "I sent the {product} back and still have no money.",
            "Please return what I paid for the {product}.",
            "I changed my mind about the {product} and want my money back.",
            "When will you pay me back for the {product}?",
            "The {product} is not what I wanted. Can I get a refund?",
            "I returned the {product} two weeks ago, unpaid so far.",
        ),
        "delivery": (
            "My {product} has not arrived yet.",
            "Where is the {product} that I bought?",
            "The parcel with my {product} is late.",
            "I have been waiting for the {product} since Monday.",
            "Tracking says that the {product} is still in your warehouse.",
            "Can you tell me when the {product} will be shipped?",
        ),
        "damage": (
            "The {product} came with a big crack.",
            "My {product} is broken.",
            "When I opened the box, the {product} was in pieces.",
            "The {product} stopped working after one day.",
            "There is a deep scratch on the {product}.",
            "A part of the {product} fell off when I unpacked it.",
        ),
        "account": (
            "I can't log in to see my {product}.",
            "My password is rejected, so I can't track the {product}.",
            "Please change the e-mail address on my account; I bought a {product}.",
            "How do I delete my account? I only ever bought a {product}.",
            "The site logs me out when I look at my {product}.",
            "I no longer have the phone that I signed up with to buy the {product}.",
        ),
        "invoice": (
            "I need a bill with my company's name for the {product}.",
            "Please send me the receipt for the {product}.",
            "The tax on the bill for the {product} is wrong.",
            "My accountant asks for an invoice for the {product}.",
            "The invoice for the {product} shows the wrong address.",
            "Could I get a copy of the bill for the {product}?",
        ),
    },
    "validation": {
        "refund": ("I would like to be paid back for the {product}.", "You still owe me the money for the {product}."),
        "delivery": ("Nobody has brought me the {product} so far.", "How long does the {product} take to get here?"),
        "damage": ("The {product} reached me dented and torn.", "The {product} does not turn on, it seems defective."),
        "account": (
            "I forgot my login, so I can't look up the {product}.",
            "My profile is locked since I bought the {product}.",
        ),
        "invoice": (
            "I have to hand in a receipt for the {product} at work.",
            "Please correct the name on the bill for the {product}.",
        ),
    },
}
ORDERS = {
    "train": ("The order is {order}.", "Order number {order}.", "It is order {order}.", "My order number: {order}."),
    "validation": ("This is about order {order}.", "(order {order})"),
}
URGENT = {
    "train": {
        True: (
            "I need an answer today.",
            "This is urgent!",
            "Please hurry, I leave tomorrow.",
            "Call me at once.",
            "I can't wait any longer.",
        ),
        False: (
            "There is no rush.",
            "Thank you and kind regards.",
            "Whenever you have time.",
            "Have a nice day.",
            "It can wait until next week.",
        ),
    },
    "validation": {
        True: ("Answer me right now, please.", "I need this solved within the hour."),
        False: ("Take your time.", "Thanks a lot in advance."),
    },
}


def row(rng: Random, split: str) -> dict[str, object]:
    """Return a random row for a split."""
    topic, product = rng.choice(list(TOPICS[split])), rng.choice(PRODUCTS)
    order, urgent = rng.randrange(10_000, 100_000), rng.random() < 0.5
    sentences = [
        rng.choice(TOPICS[split][topic]).format(product=product),
        rng.choice(ORDERS[split]).format(order=order),
        rng.choice(URGENT[split][urgent]),
    ]
    ticket = {"topic": topic, "product": product, "order": order, "urgent": urgent}
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": " ".join(sentences)},
        {"role": "assistant", "content": json.dumps(ticket)},
    ]
    return {"messages": messages, "category": topic}


def main() -> None:
    """Write rows/train.jsonl and rows/validation.jsonl to the folder of this file."""
    folder = Path(__file__).parent / "rows"
    folder.mkdir(exist_ok=True)
    for split, count in NUM_ROWS.items():
        rng = Random(f"{SEED} {split}")
        lines = [json.dumps(row(rng, split)) + "\n" for _ in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
