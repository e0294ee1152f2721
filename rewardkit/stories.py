"""The stories that playground problems tell: sixteen kinds, each a table of sentences and their arithmetic.

A story follows one running amount t. It opens with a number (or with "x groups of y"), some events change t,
and a question asks for t at the end. An event is a sentence with slots and one or two equations:

    add     t + x            sub      t - x            times   t * x          share  t / x
    addmul  x * y, t + m     submul   x * y, t - m     keep    t * p/q        lose   t * p/q, t - m

(m is the result of the equation before.) Nothing here draws numbers; `rewardkit/playground.py` does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

OPERATIONS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "add": (("t", "+", "x"),),
    "sub": (("t", "-", "x"),),
    "times": (("t", "*", "x"),),
    "share": (("t", "/", "x"),),
    "keep": (("t", "*", "x"),),
    "addmul": (("x", "*", "y"), ("t", "+", "m")),
    "submul": (("x", "*", "y"), ("t", "-", "m")),
    "lose": (("t", "*", "x"), ("t", "-", "m")),
}
"""Operation name -> its equations as (left, operator, right) over t, x, y and m."""


@dataclass(frozen=True, kw_only=True)
class Story:
    """One kind of story. In its sentences {n} is the actor, {f} a friend, {x} and {y} numbers."""

    kind: str
    total: str
    """What a step calls the running amount."""
    group: str
    """What a step calls the product or share that an event speaks of."""
    opening: str
    question: str
    events: tuple[tuple[str, str], ...]
    """(operation, sentence) pairs."""
    opening_groups: str = ""
    """An opening that gives x groups of y instead of t; empty where the story has none."""
    fractional: bool = False
    """True where the amounts are quarters and halves instead of whole numbers."""
    asides: tuple[str, ...] = field(default=("{f} is {x} years old.", "It is {x} degrees outside."))
    """Sentences that matter to nothing; one with {x} and {y} gives a true but useless product."""


def _story(
    kind: str, total: str, group: str, opening: str, question: str, *events: tuple[str, str], **more: object
) -> Story:
    return Story(kind=kind, total=total, group=group, opening=opening, question=question, events=events, **more)  # type: ignore[arg-type]


STORIES: tuple[Story, ...] = (
    _story(
        "market",
        "Apples",
        "Part",
        "{n} has {x} apples.",
        "How many apples does {n} have now?",
        ("add", "{n} buys {x} more."),
        ("sub", "{n} gives {x} to {f}."),
        ("addmul", "{n} buys {x} bags with {y} apples each."),
        ("submul", "{n} sells {x} boxes of {y} apples."),
        ("share", "{n} shares them equally among {x} friends and keeps one share."),
        ("lose", "{n} eats {x} of them."),
        opening_groups="{n} has {x} crates with {y} apples each.",
        asides=("{f} has {x} baskets with {y} pears each.", "The market is {x} miles away."),
    ),
    _story(
        "bakery",
        "Rolls",
        "Part",
        "A bakery has {x} rolls.",
        "How many rolls are left?",
        ("addmul", "The baker bakes {x} trays of {y} rolls."),
        ("sub", "A school buys {x} rolls."),
        ("submul", "Then {x} guests buy {y} rolls each."),
        ("lose", "The baker burns {x} of the rolls."),
        ("keep", "The baker keeps {x} of the rolls."),
        ("add", "The baker finds {x} rolls."),
        opening_groups="A bakery bakes {x} trays with {y} rolls each.",
        asides=("A cake costs {x} dollars.", "The shop sells {x} boxes with {y} cookies each."),
    ),
    _story(
        "library",
        "Books",
        "Part",
        "A library has {x} books.",
        "How many books are in the library?",
        ("addmul", "It gets {x} boxes of {y} books."),
        ("sub", "Readers borrow {x} books."),
        ("add", "Readers return {x} books."),
        ("keep", "The library keeps {x} of its books."),
        ("submul", "Then {x} classes borrow {y} books each."),
        ("times", "Now it grows to {x} times as many."),
        opening_groups="A library has {x} shelves with {y} books each.",
        asides=("The library has {x} windows.", "It has {x} rooms with {y} chairs each."),
    ),
    _story(
        "bus",
        "Riders",
        "Part",
        "A train leaves with {x} riders.",
        "How many riders are on the train?",
        ("add", "At a stop {x} riders get on."),
        ("sub", "At a stop {x} riders get off."),
        ("addmul", "Then {x} groups of {y} riders get on."),
        ("submul", "Then {x} families of {y} get off."),
        ("lose", "At the lake {x} of the riders get off."),
        opening_groups="A train leaves with {x} cars of {y} riders each.",
        asides=("The driver is {x} years old.", "A ticket costs {x} dollars."),
    ),
    _story(
        "savings",
        "Dollars",
        "Part",
        "{n} has {x} dollars.",
        "How many dollars does {n} have now?",
        ("add", "{n} finds {x} dollars."),
        ("sub", "{n} spends {x} dollars."),
        ("addmul", "{n} works {x} hours for {y} dollars an hour."),
        ("submul", "{n} buys {x} shirts for {y} dollars each."),
        ("lose", "{n} gives {x} of the money to {f}."),
        ("times", "{n} wins a prize and has {x} times as much."),
        asides=("{f} has {x} coins.", "{f} buys {x} hats for {y} dollars each."),
    ),
    _story(
        "reading",
        "Pages",
        "Part",
        "{n} reads {x} pages.",
        "How many pages does {n} read in all?",
        ("add", "Then {n} reads {x} pages."),
        ("addmul", "For {x} days {n} reads {y} pages a day."),
        ("times", "By summer {n} reads {x} times as many in all."),
        ("sub", "{n} skips {x} of those pages again."),
        opening_groups="{n} reads {y} pages a day for {x} days.",
        asides=("{f} reads {x} poems.", "The cover is {x} inches wide."),
    ),
    _story(
        "school",
        "Pupils",
        "Part",
        "A school has {x} pupils.",
        "How many pupils does the school have?",
        ("add", "Then {x} new pupils come."),
        ("sub", "Then {x} pupils move away."),
        ("addmul", "It opens {x} classes of {y} pupils."),
        ("submul", "It closes {x} classes of {y} pupils."),
        ("lose", "Then {x} of the pupils finish school."),
        opening_groups="A school has {x} classes of {y} pupils.",
        asides=("The school has {x} teachers.", "It has {x} tables with {y} computers each."),
    ),
    _story(
        "game",
        "Points",
        "Part",
        "{n} scores {x} points in a game.",
        "How many points does {n} have?",
        ("add", "{n} scores {x} more points."),
        ("sub", "{n} loses {x} points."),
        ("addmul", "{n} hits {x} targets for {y} points each."),
        ("submul", "{n} pays for {x} tries at {y} points."),
        ("times", "A bonus makes it {x} times as many."),
        ("keep", "After a fall {n} keeps {x} of the points."),
        asides=("{f} scores {x} goals.", "{f} throws {x} balls at {y} pins each."),
    ),
    _story(
        "farm",
        "Eggs",
        "Part",
        "A farm has {x} eggs.",
        "How many eggs does the farm have left?",
        ("addmul", "Today {x} hens lay {y} eggs each."),
        ("sub", "A cook takes {x} eggs."),
        ("submul", "The farmer sells {x} cartons of {y} eggs."),
        ("lose", "A storm breaks {x} of the eggs."),
        ("share", "The farmer splits them equally over {x} rooms and looks at one room."),
        opening_groups="On a farm {x} hens lay {y} eggs each.",
        asides=("The farm has {x} cows.", "The farm has {x} barns with {y} goats each."),
    ),
    _story(
        "cards",
        "Cards",
        "Part",
        "{n} owns {x} cards.",
        "How many cards does {n} own now?",
        ("add", "{f} gives {n} {x} cards."),
        ("sub", "{n} loses {x} cards."),
        ("addmul", "{n} opens {x} packs of {y} cards."),
        ("submul", "{n} trades away {x} sets of {y} cards."),
        ("keep", "{n} keeps only {x} of the cards."),
        ("times", "After a year {n} owns {x} times as many."),
        asides=("{f} owns {x} stickers.", "{f} owns {x} albums with {y} stamps each."),
    ),
    _story(
        "factory",
        "Toys",
        "Part",
        "A factory has {x} toys.",
        "How many toys does the factory have?",
        ("addmul", "In {x} hours it makes {y} toys an hour."),
        ("sub", "It ships {x} toys."),
        ("submul", "It ships {x} boxes of {y} toys."),
        ("lose", "A check removes {x} of the toys."),
        ("times", "A new machine makes it {x} times as many."),
        opening_groups="A factory fills {x} boxes with {y} toys each.",
        asides=("The factory has {x} workers.", "The factory has {x} trucks with {y} wheels each."),
    ),
    _story(
        "theatre",
        "Seats",
        "Part",
        "A theatre has sold {x} seats.",
        "How many seats are sold in the end?",
        ("add", "Then {x} more are sold."),
        ("sub", "Then {x} are returned."),
        ("addmul", "Then {x} schools take {y} seats each."),
        ("submul", "Then {x} clubs return {y} seats each."),
        ("times", "After a good review it is {x} times as many."),
        opening_groups="A theatre has sold {x} rows of {y} seats.",
        asides=("The play has {x} actors.", "The play has {x} acts of {y} minutes each."),
    ),
    _story(
        "trip",
        "Miles",
        "Part",
        "{n} drives {x} miles.",
        "How many miles is {n} from home?",
        ("add", "{n} drives {x} miles farther."),
        ("sub", "{n} turns and drives back {x} miles."),
        ("addmul", "{n} drives {x} hours farther at {y} miles an hour."),
        ("submul", "{n} drives back for {x} hours at {y} miles an hour."),
        ("lose", "{n} drives back {x} of the way."),
        opening_groups="{n} drives {x} hours at {y} miles an hour.",
        asides=("The car is {x} years old.", "{f} walks {x} hours at {y} miles an hour."),
    ),
    _story(
        "garden",
        "Flowers",
        "Part",
        "A garden has {x} flowers.",
        "How many flowers are in the garden?",
        ("addmul", "{n} plants {x} rows of {y} flowers."),
        ("sub", "{n} picks {x} flowers."),
        ("submul", "{n} makes {x} bunches of {y} flowers."),
        ("lose", "The frost kills {x} of the flowers."),
        ("add", "{n} plants {x} flowers."),
        opening_groups="A garden has {x} beds with {y} flowers each.",
        asides=("The garden has {x} trees.", "The garden has {x} benches with {y} legs each."),
    ),
    _story(
        "recipe",
        "Cups",
        "Part",
        "{n} pours {x} cups of flour into a bowl.",
        "How many cups are in the bowl?",
        ("add", "{n} adds {x} cups."),
        ("sub", "{n} takes out {x} cups."),
        ("times", "{n} makes it {x} times as much."),
        ("keep", "{n} keeps {x} of it in the bowl."),
        fractional=True,
        asides=("The oven is at {x} degrees.", "{f} washes {x} spoons."),
    ),
    _story(
        "tank",
        "Gallons",
        "Part",
        "A tank holds {x} gallons.",
        "How many gallons are in the tank?",
        ("add", "A pipe adds {x} gallons."),
        ("sub", "A leak takes {x} gallons."),
        ("times", "Rain makes it {x} times as much."),
        ("lose", "{n} uses {x} of the water."),
        fractional=True,
        asides=("The tank is {x} feet tall.", "The tank is {x} years old."),
    ),
)
"""Sixteen kinds; the last two count in quarters."""

NAMES: tuple[str, ...] = (
    "Ana", "Ben", "Cleo", "Dev", "Ella", "Finn", "Gia", "Hugo", "Iris", "Jonas", "Kira", "Leo",
    "Mia", "Noor", "Omar", "Pia",
)  # fmt: skip
"""Actors and friends."""
