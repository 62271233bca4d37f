"""The goods of the example shop, what goes wrong with them, and how to handle them.

A slot such as {s} or {has} is filled in for the product at hand, so that "{it} {does} not work" agrees
in number; examples/grammar.py does so.
"""


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


NAMES = _listed(
    """Maria, Daniel, Aisha, Tom, Elena, Victor, Grace, Omar, Lucy, Henrik, Nadia, Paul, Ines, Sam, Rosa,
    Felix, Hannah, Ivan, Clara, Leo, Amira, Jonas, Sofia, Peter, Mei, Carlos, Ruth, Anders, Layla, Simon,
    Julia, Marco, Dana, Oscar, Priya, Walter, Irene, Hugo, Naomi, Karl, Tessa, Bruno, Vera, Alan, Lena,
    Yusuf, Olga, Martin, Agnes, Dmitri, Fiona, George, Helen, Isaac, Joan, Kenji, Linda, Miguel, Nora,
    Patrick, Quentin, Rachel, Stefan, Teresa, Ursula, Vikram, Wendy, Xenia, Yara, Zoe"""
)

# A name that ends in "*" is plural.
PRODUCTS: dict[str, list[str]] = {
    "appliance": _listed(
        """kettle, toaster, blender, coffee machine, hair dryer, vacuum cleaner, desk lamp, fan heater,
        electric toothbrush, iron, rice cooker, hand mixer, microwave, freezer"""
    ),
    "gadget": _listed(
        """phone, tablet, laptop, watch, camera, printer, keyboard, speaker, router, headphones*, earbuds*,
        game controller, projector, radio"""
    ),
    "clothing": _listed(
        """jacket, sweater, raincoat, dress, shirt, scarf, jeans*, running shoes*, boots*, gloves*,
        wool socks*, sandals*, swimsuit, pyjamas*"""
    ),
    "furniture": _listed(
        """bookshelf, writing desk, armchair, wardrobe, bed frame, coffee table, office chair, sofa, bench,
        mirror, curtains*, garden chairs*, mattress, cupboard"""
    ),
    "outdoor": _listed(
        """bicycle, tent, backpack, lawn mower, garden hose, barbecue, sleeping bag, skateboard, scooter,
        umbrella, hiking poles*, roller skates*, hammock, fishing rod"""
    ),
}

FAULTS: dict[str, list[str]] = {
    "appliance": [
        "{does} not switch on",
        "make{s} a loud buzzing noise",
        "get{s} far too hot",
        "trip{s} the fuse every time",
        "smell{s} of burnt plastic",
        "{has} a loose plug",
        "stop{s} after a minute",
        "flicker{s} whenever the refrigerator starts",
        "leak{s} water on the table",
    ],
    "gadget": [
        "{does} not connect to anything",
        "{does} not charge any more",
        "lose{s} power within an hour",
        "{has} a crack on one side",
        "keep{s} switching off",
        "ask{s} for a password nobody knows",
        "freeze{s} after every update",
        "make{s} a strange clicking sound",
        "{has} a button that is stuck",
    ],
    "clothing": [
        "shrank in the first wash",
        "{has} a hole near the seam",
        "{has} a broken fastening",
        "lost {its} colour in the rain",
        "came apart at the stitching",
        "feel{s} rough on the skin",
        "{has} a stain that was there from the start",
        "let{s} the water in",
        "itch{s} around the collar",
    ],
    "furniture": [
        "wobble{s} on a flat floor",
        "arrived with a deep scratch",
        "{is} missing four screws",
        "{does} not fit together",
        "{has} a crack in the wood",
        "smell{s} strongly of glue",
        "{was} bent out of shape in the box",
        "creak{s} all night",
        "{does} not match the picture in the catalogue",
    ],
    "outdoor": [
        "rusted after one night outside",
        "{has} a tear along the side",
        "broke on the first trip",
        "{is} missing a strap",
        "{does} not fold up again",
        "{has} a wheel or clip that is loose",
        "arrived with a bent handle",
        "squeak{s} terribly",
        "collapse{s} under normal weight",
    ],
}

FIXES: dict[str, list[str]] = {
    "appliance": [
        "Check the fuse in the plug and try another socket.",
        "Unplug the {p} for ten minutes and clean the filter.",
        "Let the {p} cool down and press the reset button.",
    ],
    "gadget": [
        "Hold the power button of the {p} for ten seconds.",
        "Install the latest update and try a different cable.",
        "Reset the {p} from the settings menu.",
    ],
    "clothing": [
        "Wash the {p} by hand in cold water.",
        "A tailor can close a small gap in a few minutes.",
        "Let the {p} dry flat and away from the sun.",
    ],
    "furniture": [
        "Loosen every screw of the {p} and tighten them again in pairs.",
        "Put a felt pad under the short side.",
        "Look at page three of the guide for the {p}.",
    ],
    "outdoor": [
        "Rub a little oil on the joints of the {p}.",
        "The repair kit in the side pocket closes most tears.",
        "Dry the {p} well before you put {them} away.",
    ],
}
