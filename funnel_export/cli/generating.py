"""Command that runs a bundle: generate."""

import json
import sys
from typing import Annotated

import typer

from funnel_export.cli.options import BundleFolder, Json, complete_target
from funnel_export.cli.output import is_quiet, say, tell
from funnel_export.errors import SpecError, printable
from funnel_export.spec.defaults import MAX_NEW_TOKENS

SAMPLING = "Sampling"
"""Heading of options."""


def generate(
    bundle: BundleFolder,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Text to continue.", show_default="standard input")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it is, without the tokenizer's chat template.")
    ] = False,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Runtime to use, as `doctor` names it.",
            show_default="the first that runs the bundle",
            autocompletion=complete_target,
        ),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Engine to use, at most one for each graph. May be given several times."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Largest number of new tokens.")] = (
        MAX_NEW_TOKENS
    ),
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Always take the likeliest token.", rich_help_panel=SAMPLING)
    ] = False,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, metavar="X", help="Divide logits by this.", rich_help_panel=SAMPLING)
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Sample from the N likeliest tokens.", rich_help_panel=SAMPLING),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, metavar="X", help="Sample from this share of the probability.", rich_help_panel=SAMPLING
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Seed of the sampling.", rich_help_panel=SAMPLING)
    ] = None,
    json_: Json = False,
) -> None:
    """Continue a prompt. The text is printed while it is generated."""
    from funnel_export.commands.generate import generate as run

    sampled = (temperature, top_k, top_p, seed)
    if greedy and any(value is not None for value in sampled):
        raise SpecError("--greedy does not sample", got="--greedy with options of sampling", wanted="one or the other")
    if prompt is None:
        if sys.stdin.isatty():
            tell("prompt, to its end (Ctrl-D):")
        prompt = sys.stdin.read()
    found = run(
        bundle,
        prompt,
        target=target,
        engines=engine or (),
        chat=False if raw else None,
        max_new_tokens=max_new_tokens,
        sample=False if greedy else None,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        show=None if json_ else _show,
    )
    if json_:
        say(json.dumps(found.to_dict()))
        return
    _show("\n")
    if not is_quiet():
        rate = "" if found.tokens_per_second is None else f", then {found.tokens_per_second:.1f} tokens/s"
        tell(
            f"{found.prompt_tokens} tokens of prompt, first token after {found.seconds_to_first_token:.2f} s{rate}; "
            f"{len(found.tokens)} new tokens, {found.finish_reason}; cache {found.cache_bytes / 1e6:.1f} MB"
        )


def _show(piece: str) -> None:
    """Print a piece of text at once; a model's text may have characters that control a terminal."""
    sys.stdout.write(printable(piece))
    sys.stdout.flush()
