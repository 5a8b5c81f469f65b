"""What the sources have wrong, leave open, or name in a way that a reader would not expect.

Each entry is a judgement made once, by hand: a fact that is disputed, has changed since the source was written, or has
more than one good answer is left out rather than taught.
"""

from scripts.bundled_suite.lists import phrases, words

UN_MEMBERS = words("""
    AD AE AF AG AL AM AO AR AT AU AZ BA BB BD BE BF BG BH BI BJ BN BO BR BS BT BW BY BZ CA CD CF CG CH CI CL CM CN CO CR
    CU CV CY CZ DE DJ DK DM DO DZ EC EE EG ER ES ET FI FJ FM FR GA GB GD GE GH GM GN GQ GR GT GW GY HN HR HT HU ID IE IL
    IN IQ IR IS IT JM JO JP KE KG KH KI KM KN KP KR KW KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MG MH MK ML MM MN
    MR MT MU MV MW MX MY MZ NA NE NG NI NL NO NP NR NZ OM PA PE PG PH PK PL PT PW PY QA RO RS RU RW SA SB SC SD SE SG SI
    SK SL SM SN SO SR SS ST SV SY SZ TD TG TH TJ TL TM TN TO TR TT TV TZ UA UG US UY UZ VC VE VN VU WS YE ZA ZM ZW
    """)

COUNTRY_NAMES = {
    "CV": "Cape Verde",
    "NL": "Netherlands",
    "TL": "Timor-Leste",
}

COUNTRY_ALIASES = {
    "CD": ("DR Congo",),
    "CG": ("Congo Republic",),
    "CV": ("Cabo Verde",),
    "CZ": ("Czech Republic",),
    "GB": ("UK", "Great Britain"),
    "MM": ("Burma",),
    "SZ": ("Swaziland",),
    "TL": ("East Timor",),
    "US": ("USA", "United States of America"),
}

WITH_ARTICLE = words("AE BS CD CF CG DO GB GM KM MH MV NL PH SB SC US")

# Several capitals, a disputed one, or one that has moved since: no capital is taught.
NO_CAPITAL = words("BO GQ IL LK NR PW SZ ZA")
CAPITALS = {"KI": "South Tarawa", "KZ": "Astana", "MM": "Naypyidaw", "MV": "Malé", "US": "Washington, D.C."}
CAPITAL_ALIASES = {
    "KI": ("Tarawa",),
    "MM": ("Nay Pyi Taw",),
    "MV": ("Male",),
    "UA": ("Kiev",),
    "US": ("Washington", "Washington DC"),
}

# On two continents, or counted with either by different books.
NO_CONTINENT = words("AM AZ CY GE KZ RU TL TR")
CONTINENT_ALIASES = {"AU": ("Australia",)}

# Changed lately (Bulgaria joined the euro area in 2026) or in flux.
NO_CURRENCY = words("BG ZW")
CURRENCIES = {
    "AFN": "Afghan afghani",
    "BOB": "boliviano",
    "GYD": "Guyanese dollar",
    "KGS": "Kyrgyzstani som",
    "STN": "São Tomé and Príncipe dobra",
    "TOP": "Tongan pa'anga",
    "TTD": "Trinidad and Tobago dollar",
    "ZWG": "Zimbabwean gold",
}
CURRENCY_ALIASES = {
    "CNY": ("renminbi",),
    "GBP": ("pound sterling",),
    "USD": ("American dollar", "United States dollar"),
}

# Official languages that CLDR lists but that have lost that status, never had it in law, or have it only in a region.
NO_LANGUAGE = words("AF BA BF ER GB ME ML MU NE NR TV VA")
NOT_OFFICIAL = {
    "BW": {"Tswana"},
    "DZ": {"French"},
    "EC": {"Quechua"},
    "IL": {"Arabic"},
    "KZ": {"Russian"},
    "MA": {"Central Atlas Tamazight", "French"},
    "MG": {"English"},
    "MW": {"Nyanja"},
    "NG": {"Yoruba"},
    "TN": {"French"},
}
LANGUAGES = {
    "Bangla": ("Bengali", "Bangla"),
    "Chinese": ("Chinese", "Mandarin", "Mandarin Chinese"),
    "Divehi": ("Dhivehi", "Divehi", "Maldivian"),
    "Norwegian": ("Norwegian",),
    "Persian": ("Persian", "Farsi"),
    "Rundi": ("Kirundi", "Rundi"),
    "Southern Sotho": ("Sesotho", "Southern Sotho", "Sotho"),
    "Swati": ("Swazi", "Swati"),
}

# The source's area counts a disputed part in or out, or is another quantity than the one commonly given.
NO_AREA = words("BH BT CY EG FR GE IL IN KM MA MD NO NP OM PK RS RU SA SG SO UA")
NO_POPULATION = words("SY UA VE")

# Districts, suburbs, names that mean something else to most readers, and places that are disputed or held in a war.
NOT_CITIES = phrases("""
    Al Basrah al Qadimah|Bandundu Province|Bao'an|Berbera|Bhawana|Borama|Cartagena|Cordoba|Cuenca|Dayrah|Donetsk|
    East Jerusalem|Gilgit|Halifax|Hargeysa|Honcho|Horlivka|Jammu|Jerusalem|Jhang Sadr|Kawaguchi|Kherson|Khorramshahr|
    Laayoune|Luhansk|Magugpo Poblacion|Makiyivka|Manas|Mariupol|Melitopol|Merida|Merlo|Mosul al Jadidah|Muzaffarabad|
    Pravyi Bereh|San Pablo|Santa Fe|Sevastopol|Simferopol|Srinagar|Surrey|Tiraspol|Toyota|Windsor|Wuzhong
    """)
UNSURE_POPULATION = phrases("Istaravshan|Rosetta|Al Khums")

# The usual English names.
CITY_NAMES = {
    "Acapulco de Juárez": "Acapulco",
    "Al Ain City": "Al Ain",
    "Ar Raqqah": "Raqqa",
    "Basrah": "Basra",
    "Braunschweig": "Brunswick",
    "Cheongju-si": "Cheongju",
    "Chinju": "Jinju",
    "Gent": "Ghent",
    "Hannover": "Hanover",
    "Homyel'": "Gomel",
    "Hrodna": "Grodno",
    "Irákleion": "Heraklion",
    "Kryvyy Rih": "Kryvyi Rih",
    "Köln": "Cologne",
    "Madinah": "Medina",
    "Mahilyow": "Mogilev",
    "Makkah": "Mecca",
    "Male": "Malé",
    "Misratah": "Misrata",
    "Montréal": "Montreal",
    "Mykolayiv": "Mykolaiv",
    "Nay Pyi Taw": "Naypyidaw",
    "Nizhniy Novgorod": "Nizhny Novgorod",
    "Pátra": "Patras",
    "Québec": "Quebec City",
    "Sevilla": "Seville",
    "Thessaloníki": "Thessaloniki",
    "Ulan Bator": "Ulaanbaatar",
    "Victoria de Durango": "Durango",
    "Vinnytsya": "Vinnytsia",
    "Zaporizhzhya": "Zaporizhzhia",
    "Zürich": "Zurich",
    "Århus": "Aarhus",
}

GASES = words("hydrogen helium nitrogen oxygen fluorine neon chlorine argon krypton xenon radon")
LIQUIDS = words("bromine mercury")

# Books differ on these: zinc's group and lutetium among the transition metals, polonium a metal or a metalloid, and
# nonmetals as a family of their own.
NO_SERIES = words("zinc cadmium mercury lutetium lawrencium polonium astatine lanthanum actinium")
NO_BLOCK = words("helium lanthanum actinium lutetium lawrencium zinc cadmium mercury")
NO_GROUP = words("lanthanum actinium lutetium lawrencium hydrogen")
