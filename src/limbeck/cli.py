"""The command line: one function a command, no logic. Heavy libraries are imported when needed."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from limbeck.errors import LimbeckError, RecipeError

app = typer.Typer(
    help="Turn a large language model (the teacher) into a small one that you can run (the student).",
    epilog="Start with `limbeck run recipes/demo.yaml`. Exit codes: 0 done, 2 the recipe or input is wrong, "
    "130 interrupted (run it again to go on).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

_RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False)]
_Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY.PATH=VALUE", help="Change the recipe: `training.lr=3e-4 seeds=[0,1,2]`.", show_default=False
    ),
]


@app.command()
def run(
    recipe: _RecipeFile,
    overrides: _Overrides = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Do what a recipe says: prepare, train, measure, report.

    May be killed at any moment: the same command goes on where it stopped. An existing run folder
    is continued; settings that would change what is already done are refused, naming the key.
    """
    from limbeck.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from limbeck.display import Display
    from limbeck.report.text import table
    from limbeck.report.verdict import verdict
    from limbeck.run import run as do

    display = Display(quiet=quiet)
    display.say(f"[bold]limbeck[/] {recipe} → {loaded.run}")
    report = do(loaded, display)
    if not quiet:
        print("\n" + table(report.rows, min(display.console.width, 100)) + "\n")
        print(_wrapped(report.verdict or verdict(report.rows)))
        for warning in report.warnings:
            print(_wrapped(f"Note: {warning}"))
        if len(loaded.seeds) == 1:
            print(_wrapped("Note: one seed; the intervals do not cover the luck of a training."))
        print(f"\nReport: {Path(loaded.run) / 'report.html'}")


@app.command()
def check(recipe: _RecipeFile, overrides: _Overrides = None) -> None:
    """Say whether a recipe is right, without spending anything. Prints it resolved, defaults and all."""
    import yaml

    from limbeck.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from limbeck.run.check import check as refuse

    refuse(loaded)
    print(yaml.safe_dump(loaded.model_dump(mode="json", exclude_none=True), sort_keys=False), end="")


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
    only: Annotated[str | None, typer.Option(help="Of a run: these rows, by comma (teacher,soft).")] = None,
) -> None:
    """Talk to a run's teacher and students, or to any models, side by side.

    An empty line or Ctrl-D ends the conversation.
    """
    from rich.console import Console
    from rich.text import Text

    from limbeck.chatting import held_out_questions, speakers
    from limbeck.models.generate import Sampling

    console = Console(highlight=False)
    asked = held_out_questions(models[0], held_out) if held_out else []
    wanted = only.split(",") if only else None
    everybody = speakers(models)
    present = [s for s in everybody if wanted is None or s.name in wanted]
    if wanted and (missing := set(wanted) - {s.name for s in everybody}):
        known = ", ".join(s.name for s in everybody)
        raise RecipeError(f"there is no {sorted(missing)[0]}", key="--only", fix=f"There are {known}")
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


@app.command()
def schema() -> None:
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
) -> None:
    pass


def _wrapped(text: str) -> str:
    import shutil
    import textwrap

    return textwrap.fill(text, min(shutil.get_terminal_size().columns, 100))


def _full(what: str) -> NoReturn:
    print(f"limbeck: {what}. Free space or check permissions, then run again", file=sys.stderr)
    sys.exit(2)


def _interrupted() -> NoReturn:
    print("\nlimbeck: interrupted; the same command goes on where it stopped", file=sys.stderr)
    sys.exit(130)


def main() -> None:
    """Run the command line; what the user can mend is one line, and the exit code says whose it is."""
    debug = "--debug" in sys.argv
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's "stop" is an interrupt
    try:
        if app(standalone_mode=False) == 130:  # typer turns an interrupt into its exit code
            _interrupted()
    except LimbeckError as error:
        if debug:
            raise
        print(f"limbeck: {error.line()}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _interrupted()
    except OSError as error:
        if debug:
            raise
        where = f" ({error.filename})" if error.filename else ""
        _full(f"{error.strerror or error}{where}")
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # click's usage errors
            print(f"limbeck: {error.format_message().rstrip('.')}. See limbeck --help", file=sys.stderr)
            sys.exit(2)
        raise
