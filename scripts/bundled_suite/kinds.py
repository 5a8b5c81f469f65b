"""The kinds that nouns are sorted into: a fixed list of words, which are no entities themselves.

Kinds of one group exclude each other, apart from those that WordNet puts one below the other and those listed as
overlapping: so a noun that is surely of one kind is surely not of another.
"""

from scripts.bundled_suite.lists import words

# Groups of kinds, by WordNet's lexicographer files.
GROUPS = (
    {
        "noun.animal": """
            bird mammal fish insect reptile amphibian crustacean mollusk dog rodent snake monkey horse beetle dinosaur
            duck cattle
        """
    },
    {
        "noun.artifact": """
            clothing vehicle building weapon furniture musical_instrument jewelry footwear boat aircraft hand_tool
            fabric room timepiece kitchen_utensil ship
        """
    },
    {"noun.food": "beverage meat bread sauce candy vegetable edible_fruit soup"},
    {"noun.body": "bone muscle gland blood_vessel nerve internal_organ tooth"},
    {"noun.plant": "tree fern grass fungus cactus orchid vine shrub"},
    {"noun.substance": "rock alloy wood protein gas mineral salt"},
    {
        "noun.person": """
            scientist musician athlete relative physician criminal ruler clergyman soldier writer servant merchant
            artist lawyer
        """
    },
    {
        "noun.act": "sport crime game cooking dancing",
        "noun.state": "disease",
        "noun.feeling": "emotion",
        "noun.communication": "poem song",
    },
)

OVERLAPPING = (
    {"weapon", "vehicle", "boat", "ship", "aircraft"},
    {"weapon", "hand_tool", "kitchen_utensil", "timepiece", "furniture"},
    {"clothing", "jewelry", "footwear", "fabric"},
    {"boat", "ship"},
    {"building", "room"},
    {"sauce", "soup", "beverage", "vegetable", "meat", "edible_fruit"},
    {"bread", "candy"},
    {"candy", "sauce"},
    {"bone", "tooth"},
    {"gland", "internal_organ", "muscle", "nerve", "blood_vessel"},
    {"tree", "shrub", "vine"},
    {"rock", "mineral", "salt", "alloy"},
    {"protein", "salt"},
    {"scientist", "physician", "writer"},
    {"artist", "musician", "writer", "merchant", "athlete"},
    {"ruler", "relative", "soldier", "clergyman", "athlete", "musician", "writer", "servant", "merchant", "criminal"},
    {"sport", "game", "dancing"},
)

# Words of which one thinks of another meaning than the first that WordNet gives, and those of two kinds.
DOUBTFUL = words("""
    absinthe accessory acolyte affine altar antiaircraft arbor architecture argentine aspirin auction avens baby
    baker balloon bandleader bar barrage bat bead beef bib blocker boa bones booth buckskin bug bull bunting
    burdock cab cabin calamus canker cannabis cardigan cards chess chick chips chlamydia chocolate chrysalis cobia
    cock cockpit compiler conductor coop cords counter cow creeps cuisine cur derby diamond diaphysis doe dolphin
    drake drawers drone dug dun dwarfism endemic epiphysis ergot eryngo exhalation facial feedlot flu fodder
    forebear forequarter fumes furnace furnishing gall gastronomy generic germander gonorrhea goose grill grouse
    grubby halal handkerchief harassment hart hatchet hazelnut hearts hen herbal herringbone hesitancy hind holly
    hollyhock holystone hood horseshoes hose hound housewife humans hyacinth hypnotist incendiary ironing jalapeno
    jean jowl julienne kamikaze kin knapweed knuckles lacing laundry lead legume lichen limber lineman livestock
    locker locoweed log loosestrife malignancy mallow maraschino master mater meatloaf mending milkwort missile
    mount needlepoint nirvana organs outboard paprika partner partridge pastern peacock pearl pest petty pimple
    pinwheel plaid pollard popcorn poultry premonition priestess primate progenitor projectile pupa quack quad
    queen rag rattan ruby runner russet sectional shepherd shipwreck sienna silks singles sky solitaire songwriter
    southpaw soya spatchcock spavin splinters spurge stag stall stays stinger stole stops strapless syphilis tails
    tarragon teat temper testis threads thrift tit tom towel trembles trunks tuna udder underwing vet viscera
    warbler weeds wheelchair wicker wolf wrapper yoke
    """)

# WordNet counts teeth among the bones.
NOT_OF_KIND = {"bone": words("bicuspid canine incisor molar")}


def named(kind: str) -> str:
    """The kind as a reader sees it."""
    return {"edible_fruit": "fruit", "dancing": "dance"}.get(kind, kind.replace("_", " "))


def overlapping(one: str, other: str) -> bool:
    """True if something may well be of both kinds."""
    return any(one in group and other in group for group in OVERLAPPING)


def all_kinds() -> set[str]:
    """All words that name kinds, as WordNet spells them."""
    return {kind for group in GROUPS for text in group.values() for kind in text.split()}
