"""The command line: one function a command, no logic. Heavy libraries are imported when needed."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from limbeck.errors import INTERRUPTED, LimbeckError, MachineError, RecipeError, counted, sentence

app = typer.Typer(
    help="Turn a large language model (the teacher) into a small one that you can run (the student).",
    epilog="Start with `limbeck run recipes/demo.yaml`. Exit codes: 0 done; 1 a bug in limbeck, with its traceback; "
    "2 the command, the recipe, its input or the run folder is wrong; 3 the training diverged, or no teacher is "
    "left; 4 memory or disk space ran out, or the budget is spent; 130 interrupted (run it again to go on).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
generate = typer.Typer(
    help="See, take out and retry what teachers wrote for a run.", no_args_is_help=True, rich_markup_mode="markdown"
)
app.add_typer(generate, name="generate")
signals = typer.Typer(
    help="See, check, mend, join and move stores of a teacher's signals.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(signals, name="signals")

_RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False)]
_Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY.PATH=VALUE", help="Change the recipe: `training.lr=3e-4 seeds=[0,1,2]`.", show_default=False
    ),
]

SPINS = "20000"
"""How long threads of OpenMP spin while they wait for each other, before they sleep. By default they do for
milliseconds: where another process takes a core, a small model then trains at a third of its speed (docs/log.md).
"""

_goes_on = False  # set by commands whose work is kept when they are interrupted
_debug = False  # set while the command line is parsed, read when an error is shown


def _set_debug(value: bool) -> None:
    global _debug
    _debug = _debug or value


_Debug = Annotated[
    bool,
    typer.Option("--debug", callback=_set_debug, expose_value=False, help="Show the traceback of an error."),
]


@app.command()
def run(
    recipe: _RecipeFile,
    overrides: _Overrides = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Stages that run at a time; default: the recipe's `jobs`.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say what would be kept, run and refused, and why; do nothing. Exits with 2 if anything is refused.",
        ),
    ] = False,
    keep_stale: Annotated[
        bool, typer.Option("--keep-stale", help="Keep what an older limbeck made and this one would make otherwise.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    debug: _Debug = False,
) -> None:
    """Do what a recipe says: prepare, train, measure, report.

    May be killed at any moment: the same command goes on where it stopped. An existing run folder
    is continued; settings that would change what is already done are refused, naming the key.
    """
    global _goes_on
    from limbeck.recipe import load_recipe

    _goes_on = not dry_run
    loaded = load_recipe(recipe, overrides or [])
    from limbeck.commands.run import decisions, show_result
    from limbeck.commands.run import run as do
    from limbeck.display import Display

    display = Display(quiet=quiet)
    if dry_run:
        from limbeck.commands.status import show_decisions

        found = decisions(loaded, keep_stale=keep_stale)
        show_decisions(found, display.console)
        if any(decision.error is not None for decision in found):
            raise typer.Exit(RecipeError.exit_code)
        return
    display.say(f"[bold]limbeck[/] {recipe} → {loaded.run}")
    report = do(loaded, display, jobs=jobs, keep_stale=keep_stale)
    if not quiet:
        show_result(report, loaded, display)


@app.command()
def capture(
    recipe: _RecipeFile,
    overrides: _Overrides = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that capture, each with the teacher loaded.")] = 1,
    keep_stale: Annotated[
        bool, typer.Option("--keep-stale", help="Keep what an older limbeck made and this one would make otherwise.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    debug: _Debug = False,
) -> None:
    """Have the teacher's signals captured that a recipe's trainings read, and train nothing.

    What the store holds already is not captured again. May be killed at any moment: the same command goes on.
    """
    global _goes_on
    from limbeck.recipe import load_recipe

    _goes_on = True
    loaded = load_recipe(recipe, overrides or [])
    from limbeck.commands.capture import capture as do
    from limbeck.display import Display

    display = Display(quiet=quiet)
    display.say(f"[bold]limbeck[/] {recipe} → {loaded.run}")
    do(loaded, display, workers=workers, keep_stale=keep_stale)


@app.command()
def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)],
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: _Debug = False,
) -> None:
    """Say where a run stands, stage by stage, also while it goes on."""
    from rich.console import Console

    from limbeck.commands.status import as_json, show_status
    from limbeck.workflow.status import status_of

    found = status_of(run)
    print(as_json(found)) if json_ else show_status(found, Console(highlight=False))


@app.command()
def check(
    recipe: _RecipeFile,
    overrides: _Overrides = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Print the recipe with all its defaults instead, in YAML.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Ask no server of a teacher that is called.")] = False,
    debug: _Debug = False,
) -> None:
    """Say whether a recipe is right, and what a run of it does.

    Configurations, tokenizers and the first documents are read, and no weights. What is proven of models is kept in
    the user's cache, so that the next check of the same files is quick. A teacher behind an API whose key is set is
    asked a handful of short questions: whether it takes the recipe's settings.
    """
    from limbeck.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from limbeck.commands.checking.look import look
    from limbeck.commands.checking.plan import plan_of
    from limbeck.commands.checking.servers import ask_servers
    from limbeck.commands.checking.show import as_json, show_plan
    from limbeck.pipeline.checks_served import UNSEEN
    from limbeck.pipeline.sections import resolved as with_defaults

    plan = plan_of(loaded, look(loaded))
    servers = ask_servers(loaded, offline=offline)
    plan.notes += [line for line in servers if not line.startswith(UNSEEN)]
    unseen = [line.removeprefix(UNSEEN) for line in servers if line.startswith(UNSEEN)]
    plan.warnings += unseen
    if resolved:
        print(with_defaults(loaded), end="")
    else:
        print(as_json(plan) if json_ else "\n".join(show_plan(plan)))
    for note in plan.notes:
        print(f"limbeck: {note}", file=sys.stderr)
    for warning in plan.warnings:
        print(f"limbeck: warning: {warning}", file=sys.stderr)
    counts = {"technique": loaded.techniques, "student": loaded.named_students, "seed": loaded.seeds}
    many = ", ".join(counted(len(each), name) for name, each in counts.items())
    right = "is right as far as it could be looked at" if unseen else "is right"
    print(f"limbeck: {recipe} {right}: {many}", file=sys.stderr)


@app.command()
def data(
    recipe: _RecipeFile,
    overrides: _Overrides = None,
    show: Annotated[int, typer.Option(min=0, help="Of every source, print its first so many documents.")] = 3,
    debug: _Debug = False,
) -> None:
    """Show what is made of the data: what every source is recognised as, and documents token by token.

    What is only read is dim, what is learned bright; marks that a template writes around the words, and what ends a
    turn, have a colour of their own. No weights are loaded.
    """
    from rich.console import Console

    from limbeck.commands.data import show_data
    from limbeck.recipe import load_recipe

    show_data(load_recipe(recipe, overrides or []), show, Console(highlight=False))


@app.command()
def chat(
    models: Annotated[list[str], typer.Argument(metavar="MODEL", help="A run folder, or models by path or name.")],
    ask: Annotated[
        list[str] | None, typer.Option("--ask", "-a", help="Ask this and leave; may be given again.")
    ] = None,
    held_out: Annotated[
        int, typer.Option(min=0, help="Of a run: ask its first so many held-out questions and leave.")
    ] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer.")] = 200,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the most probable word.")] = 0.0,
    only: Annotated[
        str | None, typer.Option(help="Of a run: these rows, by comma; a technique: all its students.")
    ] = None,
    debug: _Debug = False,
) -> None:
    """Talk to a run's teacher and students, or to any models, side by side.

    An empty line or Ctrl-D ends the conversation.
    """
    from rich.console import Console
    from rich.text import Text

    from limbeck.commands.chat import held_out_questions, speakers
    from limbeck.models.generate import Sampling

    console, aside = Console(highlight=False), Console(stderr=True, highlight=False)
    asked = held_out_questions(models[0], held_out) if held_out else []
    present = speakers(models, only.split(",") if only else None, lambda line: aside.print(Text(line, "dim")))
    sampling = Sampling(max_new_tokens, temperature)
    questions = iter(ask) if ask else iter(lambda: console.input("\n[bold]you[/] ").strip(), "")
    # Text, not markup: what a model says is never interpreted.
    for question in asked:
        console.print(Text("\nyou ", "bold"), Text(question.words), sep="")
        console.print(Text("the data ", "bold dim"), Text(question.answer), sep="")
        for speaker in present:
            said = speaker.go_on(question.prompt, sampling)
            console.print(Text(f"{speaker.name} ", "bold cyan"), Text(said), sep="")
    if asked and not ask:
        return
    try:
        for words in questions:
            if ask:
                console.print(Text("\nyou ", "bold"), Text(words), sep="")
            for speaker in present:
                console.print(Text(f"{speaker.name} ", "bold cyan"), Text(speaker.answer(words, sampling)), sep="")
    except EOFError:
        pass


_Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a journal.", show_default=False)]


@generate.command("status")
def generate_status(
    run: _Run, json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False, debug: _Debug = False
) -> None:
    """Say what was asked and answered, who wrote it, what it cost, and what of it is learned. Nothing is written."""
    from rich.console import Console

    from limbeck.commands.generate import as_json, show_status, status_of

    found = status_of(run)
    print(as_json(found)) if json_ else show_status(found, Console(highlight=False))


@generate.command("cost")
def generate_cost(recipe: _RecipeFile, overrides: _Overrides = None, debug: _Debug = False) -> None:
    """Say what a recipe's answers cost, before anything is spent. No server is asked."""
    from rich.console import Console

    from limbeck.commands.cost import costs_of, show_costs
    from limbeck.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    show_costs(loaded, costs_of(loaded), Console(highlight=False, soft_wrap=True))


@generate.command("export")
def generate_export(
    run: _Run,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.", show_default=False)],
    text: Annotated[str | None, typer.Option(help="Which text, where a run has several: select-....")] = None,
    answers: Annotated[
        bool, typer.Option("--answers", help="All answers as they are in the journal, right or wrong, as JSON lines.")
    ] = False,
    debug: _Debug = False,
) -> None:
    """Write what is learned as a data set: Parquet and JSON lines that TRL and axolotl read, with a card."""
    from limbeck.commands.generate import export, export_answers

    print(export_answers(run, out) if answers else export(run, out, text))


@generate.command("retry")
def generate_retry(
    run: _Run,
    kind: Annotated[
        list[str] | None, typer.Option(help="Only failures of this kind; may be given again. Default: all.")
    ] = None,
    debug: _Debug = False,
) -> None:
    """Have requests that failed asked once more by the next `limbeck run`."""
    from limbeck.commands.generate import retry

    print(retry(run, kind or []))


_Store = Annotated[Path, typer.Argument(metavar="FOLDER", help="A store of signals.", show_default=False)]


@signals.command("inspect")
def signals_inspect(
    folder: _Store, json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False, debug: _Debug = False
) -> None:
    """Say whose signals a store holds, how many, and what they take. Nothing is hashed, and nothing is written.

    Exits with 2 where something is wrong.
    """
    from rich.console import Console

    from limbeck.commands.signals.stores import as_json, inspect, show_summary
    from limbeck.errors import StoreError

    found = inspect(folder)
    print(as_json(found)) if json_ else show_summary(found, Console(highlight=False))
    if found.faults:
        raise typer.Exit(StoreError.exit_code)


@signals.command("verify")
def signals_verify(folder: _Store, debug: _Debug = False) -> None:
    """Hash every shard and read every entry. Exits with 2 where something is wrong."""
    from rich.console import Console

    from limbeck.commands.signals.stores import verify
    from limbeck.errors import StoreError

    if verify(folder, Console(highlight=False, soft_wrap=True)).faults:
        raise typer.Exit(StoreError.exit_code)


@signals.command("repair")
def signals_repair(folder: _Store, debug: _Debug = False) -> None:
    """Set aside what fails, and adopt shards that a killed writer finished but did not name."""
    from limbeck.commands.signals.stores import repair

    for line in repair(folder):
        print(line)


@signals.command("merge")
def signals_merge(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Stores.", show_default=False)],
    into: Annotated[Path, typer.Option(metavar="FOLDER", help="A store, new or of the same teacher and scheme.")],
    debug: _Debug = False,
) -> None:
    """Copy stores of one teacher, tokenizer and scheme into one. The same command goes on where it stopped."""
    global _goes_on
    from limbeck.commands.signals.stores import merge

    _goes_on = True
    print(merge(folders, into))


@signals.command("export")
def signals_export(
    folder: _Store,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.", show_default=False)],
    distillkit: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Write rows for DistillKit, of this run's documents; of `top_k` only."),
    ] = None,
    debug: _Debug = False,
) -> None:
    """Write a store as Parquet, compressed by zstd, for cold storage. `import` brings it back, byte by byte."""
    from limbeck.commands.signals.stores import export, export_for_distillkit

    print(export(folder, out) if distillkit is None else export_for_distillkit(folder, out, distillkit))


@signals.command("import")
def signals_import(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A file or folder.", show_default=False)],
    into: Annotated[
        Path,
        typer.Argument(
            metavar="INTO", help="A store for what limbeck exported; else a recipe (YAML).", show_default=False
        ),
    ],
    overrides: _Overrides = None,
    debug: _Debug = False,
) -> None:
    """Read signals that were exported, or log-probabilities of DistillKit, vLLM or axolotl, into a store; or hidden
    states that vLLM kept.

    Of what is not limbeck's a recipe says teacher, documents, temperature and scheme. Its teacher scores 32 positions
    again: a shift is found, and another teacher or temperature is refused. The same command goes on where it stopped.
    """
    global _goes_on
    _goes_on = True
    if into.suffix in (".yaml", ".yml"):
        from limbeck.commands.signals.imported import import_for
        from limbeck.recipe import load_recipe

        print(import_for(load_recipe(into, overrides or []), source))
        return
    from limbeck.commands.signals.stores import import_

    print(import_(source, into))


@app.command()
def schema(debug: _Debug = False) -> None:
    """Print the recipe's JSON Schema, for editors that complete and check YAML."""
    from limbeck.recipe import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=2))


def _version(value: bool) -> None:
    if value:
        from importlib import metadata

        print(f"limbeck {metadata.version('limbeck')}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: _Debug = False,
) -> None:
    pass


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)


def _of_the_machine(error: OSError) -> MachineError:
    """What an operating system refused, and what helps against it."""
    where = f" ({error.filename})" if error.filename else ""
    fix = "Run it again; `--debug` shows where it was raised"
    if error.errno in _NO_ROOM:
        fix = "Free space, then run it again"
    elif error.errno == errno.ENOENT:
        fix = "Check the path"
    elif error.errno in _NO_PERMISSION:
        fix = "Check permissions, then run it again"
    return MachineError(f"{error.strerror or str(error) or type(error).__name__}{where}", fix=fix)


def _leave(error: LimbeckError) -> NoReturn:
    print(f"limbeck: {error.line()}", file=sys.stderr)
    sys.exit(error.exit_code)


def _interrupted() -> NoReturn:
    goes_on = "; the same command goes on where it stopped" if _goes_on else ""
    print(f"\nlimbeck: interrupted{goes_on}", file=sys.stderr)
    sys.exit(INTERRUPTED)


def main() -> None:
    """Run the command line; what the user can mend is one line, and the exit code says of what kind it is."""
    global _debug, _goes_on
    _debug = _goes_on = False
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # before torch is imported; for worker processes, too
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's "stop" is an interrupt
    try:
        code = app(standalone_mode=False)  # typer turns an interrupt, and what a command exits with, into a number
        if code == INTERRUPTED:
            _interrupted()
        if code:
            sys.exit(code)
    except (typer.Abort, KeyboardInterrupt):
        _interrupted()
    except BrokenPipeError:  # the reader of our output has left (`limbeck schema | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        if _debug:
            raise
        if isinstance(error, LimbeckError):
            _leave(error)
        if isinstance(error, OSError):
            _leave(_of_the_machine(error))
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # click's usage errors
            said = error.format_message().strip()
            if said:  # nothing: the help was printed, because no command was named
                print(f"limbeck: {sentence(said)} See limbeck --help", file=sys.stderr)
            sys.exit(2)
        raise
