"""The command line's application, and the commands that neither train nor measure: on a corpus, and tools."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from shoulders.errors import UsageError

Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 (typer reads it)
    typer.Argument(
        metavar="[KEY=VALUE]...", help="recipe values to change, e.g. training.steps=200", show_default=False
    ),
]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
    help="""More out of one **frozen** language model: train what stands around it, measure it, keep it, ask it.

Start with `shoulders demo`. Then train a recipe of your own:

`shoulders recipes` · `shoulders train bundled_input_prompt --out runs/first` · `shoulders ask runs/first/best`

Every value of a recipe can be changed on the command line: `training.steps=200 scaffold.length=20`.
""",
)

Collection = Annotated[
    str,
    typer.Option(
        help="of the server [default: upload names it after the index's folder]; to search by both ways SPARSE,DENSE"
    ),
]
TokenVariable = Annotated[
    str,
    typer.Option(
        metavar="VAR",
        help="environment variable that holds the server's token, or USER:PASSWORD [default: MILVUS_TOKEN]",
    ),
]


@app.command(rich_help_panel="Evidence corpus")
def index(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="files, folders, or hub:NAME[:CONFIG]")],
    out: Annotated[Path, typer.Option(help="folder of the index, made if there is none")],
    sentences: Annotated[bool, typer.Option("--sentences", help="end passages with a sentence")] = False,
    as_is: Annotated[bool, typer.Option("--as-is", help="records of .jsonl and hub: are passages already")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="delete documents that the sources no longer hold")] = False,
) -> None:
    """Build an evidence corpus: passages of 100 words, searched by BM25.

    Reads .txt, .md, .html, .pdf, .jsonl[.gz] (`text`, and `title` and `id` if there are any), DPR's
    .tsv[.gz] (`id`, `text`, `title`; kept as they are), folders of these, and Hugging Face data sets.

    The same command again brings the index up to date: only what changed is read in. A build that was killed goes on
    with the same command.
    """
    from shoulders.cli.corpus import run_index

    run_index(sources, out, sentences=sentences, as_is=as_is, prune=prune)


@app.command(rich_help_panel="Evidence corpus")
def encode(
    folder: Annotated[Path, typer.Argument(metavar="INDEX", help="folder of an index (`shoulders index`)")],
    retriever: Annotated[
        str, typer.Option(help="a bi-encoder: folder, hub name (DPR: `question|passage`) or package:")
    ],
    name: Annotated[str, typer.Option(help="of the vectors in the index [default: the retriever's]")] = "",
    kind: Annotated[
        str,
        typer.Option(
            help="how they are searched: flat, sq8, ivf-sq8, ivf-pq or ivf-rabitq [default: sq8, from a million "
            "passages on ivf-sq8]"
        ),
    ] = "",
    pooling: Annotated[str, typer.Option(help="cls or mean [default: what the retriever says, else mean]")] = "",
    dtype: Annotated[str, typer.Option("--type", help="of the vectors: float16 or float32")] = "float16",
) -> None:
    """Make the vectors of an index's passages, for `shoulders search --retriever dense`.

    The same command again brings them up to date: only new passages are encoded. A run that was killed goes on with the
    same command.
    """
    from shoulders.cli.corpus import run_encode

    run_encode(folder, retriever, name=name, kind=kind, pooling=pooling, dtype=dtype)


@app.command(rich_help_panel="Evidence corpus")
def search(  # noqa: PLR0913, PLR0917 (what it can be told)
    folder: Annotated[Path, typer.Argument(metavar="INDEX", help="folder of an index (`shoulders index`)")],
    queries: Annotated[list[str], typer.Argument(metavar="QUERY...", help="questions or words")],
    k: Annotated[int, typer.Option("-k", help="passages of each query")] = 10,
    retriever: Annotated[
        str,
        typer.Option(help="sparse (BM25), dense, hybrid (sum of their scores) or rrf (of their ranks)"),
    ] = "sparse",
    weight: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="of sparse scores in the hybrid sum [default: 1]", show_default=False),
    ] = None,
    dense: Annotated[str, typer.Option(help="name of the vectors, if the index has several")] = "",
    engine: Annotated[str, typer.Option(metavar="URI", help="a Milvus that it was sent to (`shoulders upload`)")] = "",
    collection: Collection = "",
    token_env: TokenVariable = "",
) -> None:
    """Find passages of an index by BM25, by vectors (`shoulders encode`), or by both; here, or on a server."""
    from shoulders.cli.corpus import Engine, run_search

    server = Engine(engine, collection, token_env) if engine else None
    run_search(folder, queries, k, retriever, weight=weight, dense=dense, engine=server)


@app.command(rich_help_panel="Evidence corpus")
def upload(
    folder: Annotated[Path, typer.Argument(metavar="INDEX", help="folder of an index (`shoulders index`)")],
    to: Annotated[str, typer.Option(metavar="URI", help="http://HOST:19530, or a local file that ends in .db")],
    collection: Collection = "",
    token_env: TokenVariable = "",
    k1: Annotated[float, typer.Option(help="of BM25; Pyserini's if none is given")] = 0.9,
    b: Annotated[float, typer.Option(help="of BM25; Pyserini's if none is given")] = 0.4,
    dense: Annotated[str, typer.Option(help="send the vectors of that name (`shoulders encode`) instead of BM25")] = "",
    kind: Annotated[
        str,
        typer.Option(
            help="how vectors are searched: FLAT (all of them), HNSW, IVF_FLAT or IVF_SQ8 [default: FLAT]",
            show_default=False,
        ),
    ] = "",
) -> None:
    """Send an index to Milvus: its BM25 weights as sparse vectors, so that every server finds the same, or its vectors.

    The same command again sends what changed. An upload that was killed goes on with the same command. Search it with
    `shoulders search INDEX ... --engine URI`, read it with `evidence.engine=URI`.
    """
    from shoulders.cli.corpus import Engine, run_upload, run_vectors

    engine = Engine(to, collection, token_env)
    if kind and not dense:
        raise UsageError(f"--kind {kind} is of vectors, and BM25 is sent: add --dense NAME, or leave --kind out")
    if dense:
        run_vectors(folder, engine, dense, kind)
    else:
        run_upload(folder, engine, k1, b)


@app.command(rich_help_panel="Tools")
def recipes(
    name: Annotated[Optional[str], typer.Argument(help="show all values of this one", show_default=False)] = None,  # noqa: UP045
) -> None:
    """List the named recipes, or show every value of one."""
    from shoulders.cli.tools import run_recipes

    run_recipes(name)


@app.command(rich_help_panel="Tools")
def check(
    suite: Annotated[str, typer.Argument(help="a suite, as suite.source names it: a folder, qa:..., p3:..., hub:...")],
    tasks: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="look at these tasks only", show_default=False),
    ] = None,
) -> None:
    """Look through a suite before it is trained on: broken lines, failing templates, repeated ids.

    Every record is read and rendered in every template. Ids are the records' `id` fields, compared within a split.
    """
    from shoulders.cli.tools import run_check

    run_check(suite, tasks or [])


@app.command(rich_help_panel="Tools")
def plan(
    recipe: Annotated[str, typer.Argument(help="a recipe's name or a recipe.json; or 'index' for an evidence corpus")],
    overrides: Overrides = None,
    input_length: Annotated[int, typer.Option(help="tokens of an input")] = 256,
    output_length: Annotated[int, typer.Option(help="tokens of an answer")] = 16,
    passages: Annotated[int, typer.Option(help="of an index; 21,015,324 are DPR's Wikipedia")] = 21_015_324,
    dimension: Annotated[int, typer.Option(help="of an index's dense vectors")] = 768,
    tokens_per_second: Annotated[float, typer.Option(help="that the encoder of an index reads")] = 0,
) -> None:
    """What a recipe costs at any scale, without loading a weight: parameters, memory, floating-point work.

    The step and the answer are run on PyTorch's meta device, which has shapes but no values, and counted.

    `shoulders plan index --passages N --dimension D`: what an evidence corpus of that size needs on disk, in memory and
    in time, by engine.
    """
    from shoulders.cli import tools

    if recipe == tools.NAME:
        tools.run_plan_index(passages, dimension, tokens_per_second)
    else:
        tools.run_plan(recipe, overrides or [], input_length, output_length)


@app.command(rich_help_panel="Tools")
def convert(
    source: Annotated[Path, typer.Argument(help="a soft prompt's folder, or a PEFT prompt-tuning adapter's")],
    target: Annotated[Path, typer.Argument(help="folder to write")],
    backbone: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="the language model it belongs to [default: the name in the folder]"),
    ] = None,
) -> None:
    """Convert a soft prompt to PEFT's prompt-tuning format, or such an adapter to a soft prompt."""
    from shoulders.cli.tools import run_convert

    run_convert(source, target, backbone)
